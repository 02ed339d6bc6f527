"""From an exception to the note that it gains: one way down, file by file.

``entry``       is asked by the recorder of a trace, or by ``aftermath`` for an exception that nobody traced.
``tracebacks``  reads the frames that the error left: what each was running, and whether a hook raised it. What the
                names and expressions in a frame are comes from ``values``, without a call of anybody's code. A tensor
                that is not at hand is a ghost (``ghosts``), and PyTorch says what it would be (``meta``). A
                comprehension is read as what it is short for (``loops``).
``scene``       holds what is known: the frames; the forward's calls in order and where a tensor came from
                (``origins``); what the source calls things, and what was given to what (``operands``).
``find``        asks one rule after another, and the first that applies is the cause. ``sites`` lists for them the
                expressions that were running and the layers and functions that were called; then, in this order:

    ``objects``     something that is no tensor, a None, a key that is not there
    ``kinds``       another device or dtype
    ``contracts``   sizes that a layer, loss or function does not take: ``table`` says what it takes, ``patterns``
                    reads it, and finds what would fit; ``labels`` and ``batches`` tell why the rows are others
    ``indices``     out of range
    ``clashes``     sizes of an expression that do not go together: ``operations`` and ``selections`` say which,
                    ``fixes`` and ``views`` what could be done
    ``demands``     a dimension, an order in memory, a range
    ``checks``      what a library checked by itself; ``lengths`` says which tensor a number is a size of
    ``unpacking``   more names, or fewer, than what is unpacked has parts
    ``texts``       virtual tokens, vocabularies and lengths, which the others ask for, too
    ``refusals``    a rule of an operation's own: PyTorch is asked what it would take instead

``promises``    says which module a wrong size first came out of, as the rules ask, and whether a layer returned what
                its class does not.
``failure``     is what comes out: the cause as data, and as the text of the note.
"""
