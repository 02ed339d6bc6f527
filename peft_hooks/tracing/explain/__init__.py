"""Turn an exception into the note that is added to it.

The modules, in the order in which they are used:

``entry``       The entry point, for the recorder of a trace and, for exceptions that no trace saw, ``aftermath``.
``tracebacks``  Reads the frames that the error passed through: what each was running, and whether a hook raised.
                ``values`` evaluates names and expressions in a frame without calling anyone's code. A tensor that no
                longer exists is represented by a ghost (``ghosts``), and PyTorch infers its shape (``meta``,
                ``layers``). A comprehension is replaced by the expressions that it stands for (``loops``).
``scene``       Holds everything that is known: the frames; the forward's calls in order, and where each tensor came
                from (``origins``); what things are called in the source, and what was passed to what (``operands``).
``find``        Tries one rule after another; the first that applies gives the cause. ``sites`` lists the expressions
                that were running and the layers and functions that were called. The rules, in this order:

    ``objects``     something that is not a tensor, a None, a missing key
    ``kinds``       a different device or dtype
    ``contracts``   sizes that a layer, loss or function does not take: ``table`` says what it takes; ``patterns``
                    reads the table and finds what would fit; ``labels`` and ``batches`` find out why rows differ
    ``indices``     indices out of range; ``whole`` works out their values
    ``clashes``     sizes in an expression that do not match: ``operations`` and ``selections`` say which (as an
                    ``unlike`` clash), ``losses``, ``fixes`` and ``views`` what to do
    ``demands``     a missing dimension, memory layout, a range of values
    ``unpacking``   more or fewer names than what is unpacked has parts
    ``checks``      a library's own check; ``lengths`` finds the tensor that has a size
    ``texts``       virtual tokens, vocabularies and lengths; the other rules use it, too
    ``refusals``    an operation's own rule: PyTorch is asked what it would take instead

``promises``    Tells the rules which module a wrong size first came out of, and finds layers that returned something
                other than their class does.
``failure``     The result: the cause as data and as the text of the note.
"""
