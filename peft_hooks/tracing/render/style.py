"""The look of a trace's page: colours for light and dark, and nothing from elsewhere."""

from __future__ import annotations

_LIGHT = """
  --paper: #ffffff; --ground: #f6f7f9; --ink: #1d2433; --soft: #667085; --line: #d7dce5; --box: #ffffff;
  --virtual: #9a4fd8; --text: #2f9e6b; --padding: #c9cfda; --bad: #d12c3f; --badground: #fdecee; --accent: #2f6fde;
"""
_DARK = """
  --paper: #14171f; --ground: #1a1e28; --ink: #e7eaf1; --soft: #98a2b5; --line: #323a4b; --box: #202633;
  --virtual: #bb86ee; --text: #4fc08d; --padding: #4a5366; --bad: #ff6b7a; --badground: #3a1e26; --accent: #7aa7ff;
"""

_SANS = 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif'
_MONO = 'ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace'

STYLE = f"""
.pht {{{_LIGHT}
  color: var(--ink); background: var(--ground); font: 14px/1.5 {_SANS};
  padding: 24px; box-sizing: border-box; border-radius: 10px; }}
@media (prefers-color-scheme: dark) {{ .pht {{{_DARK}}} }}
.pht *, .pht *::before {{ box-sizing: border-box; }}
.pht .in {{ max-width: 1080px; margin: 0 auto; }}
.pht h1 {{ font-size: 20px; margin: 0 0 2px; font-weight: 650; color: var(--ink); }}
.pht h2 {{ font-size: 13px; margin: 24px 0 8px; font-weight: 600; color: var(--soft); }}
.pht p {{ margin: 0 0 4px; color: var(--soft); }}
.pht code, .pht .mono {{ font-family: {_MONO}; }}
.pht code {{ background: transparent; color: inherit; font-size: 13px; padding: 0; }}
.pht .flow {{ display: grid; grid-template-columns: minmax(0, 700px) minmax(0, 1fr); gap: 24px; align-items: start; }}
.pht .flow > svg {{ width: 100%; height: auto; display: block; }}
.pht .side {{ position: sticky; top: 16px; }}
.pht .card {{ background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 14px 16px;
  margin-bottom: 14px; }}
.pht .legend span {{ display: flex; align-items: center; gap: 8px; margin: 3px 0; color: var(--ink); }}
.pht .legend i {{ width: 22px; height: 10px; border-radius: 3px; flex: none; border: 1px solid transparent; }}
.pht .bad {{ border-color: var(--bad); background: var(--badground); overflow-wrap: anywhere; }}
.pht .bad h3 {{ margin: 0 0 6px; font-size: 15px; color: var(--bad); }}
.pht .bad p {{ color: var(--ink); margin: 6px 0 0; }}
.pht .bad b {{ color: var(--bad); font-weight: 600; }}
.pht .bad code {{ white-space: pre-wrap; }}
.pht .tree {{ background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 6px 12px;
  overflow-x: auto; }}
.pht .tree details > :not(summary) {{ margin-left: 14px; border-left: 1px solid var(--line); padding-left: 8px; }}
.pht .all > summary {{ list-style-position: inside; margin-bottom: 4px; }}
.pht .tree summary {{ cursor: pointer; list-style-position: outside; }}
.pht .tree summary, .pht .tree .leafrow {{ padding: 3px 0 3px 2px; }}
.pht .tree details {{ padding-left: 14px; }}
.pht .tree .leafrow {{ padding-left: 16px; }}
.pht .row {{ display: inline-grid; grid-template-columns: minmax(170px, 1.1fr) minmax(150px, .7fr) 2.8fr; gap: 4px 14px;
  width: calc(100% - 8px); vertical-align: top; }}
.pht .row > span {{ overflow-wrap: anywhere; }}
.pht .row .kind {{ color: var(--soft); }}
.pht .row .mono {{ font-size: 12px; }}
.pht .row .to {{ color: var(--accent); }}
.pht .raised > .row > :first-child, .pht .raised .row .kind {{ color: var(--bad); font-weight: 650; }}
.pht table {{ border-collapse: collapse; width: 100%; font-size: 13px; }}
.pht td, .pht th {{ text-align: left; padding: 5px 10px; border-bottom: 1px solid var(--line); vertical-align: top;
  background: transparent; color: var(--ink); }}
.pht td:first-child {{ overflow-wrap: anywhere; min-width: 180px; }}
.pht th {{ color: var(--soft); font-weight: 600; }}
.pht tr.first td {{ background: var(--badground); }}
.pht del {{ color: var(--soft); text-decoration: none; }} .pht ins {{ color: var(--accent); text-decoration: none; }}
.pht .wide {{ overflow-x: auto; }}
.pht svg text {{ font-size: 13px; fill: var(--ink); font-family: {_SANS}; }}
.pht svg .m {{ font-family: {_MONO}; font-size: 12px; }}
.pht svg .h {{ font-size: 15px; font-weight: 650; }}
.pht svg .soft {{ fill: var(--soft); }} .pht svg .new {{ font-weight: 650; }}
.pht svg .badtext {{ fill: var(--bad); font-weight: 650; }}
.pht svg .box {{ fill: var(--box); stroke: var(--line); stroke-width: 1.2; }}
.pht svg .boxbad {{ fill: var(--badground); stroke: var(--bad); stroke-width: 2; }}
.pht svg .boxoff {{ fill: none; stroke: var(--line); stroke-width: 1.2; stroke-dasharray: 5 5; }}
.pht svg .wire {{ stroke: var(--soft); stroke-width: 1.6; fill: none; }} .pht svg .tip {{ fill: var(--soft); }}
.pht svg .wirebad {{ stroke: var(--bad); }} .pht svg .tipbad {{ fill: var(--bad); }}
.pht svg .rail {{ stroke: var(--line); stroke-width: 1.2; }} .pht svg .dot {{ fill: var(--accent); }}
.pht svg .dotbad {{ fill: var(--bad); }}
.pht .virtual {{ fill: var(--virtual); background: var(--virtual); }}
.pht .text {{ fill: var(--text); background: var(--text); }}
.pht .padding {{ fill: var(--padding); background: var(--padding); }}
.pht .both {{ fill: var(--text); background: var(--text); opacity: .45; }}
.pht svg .small {{ font-size: 11px; }}
.pht .virtualoff {{ fill: none; stroke: var(--virtual); border-color: var(--virtual) !important; }}
.pht .failing {{ background: var(--bad); }}
@media (max-width: 900px) {{
  .pht {{ padding: 14px; }}
  .pht .flow {{ grid-template-columns: minmax(0, 1fr); gap: 14px; }}
  .pht .side {{ position: static; order: -1; }}
  .pht .legend {{ display: flex; flex-wrap: wrap; gap: 2px 18px; }} .pht .legend p {{ width: 100%; }}
  .pht .row {{ grid-template-columns: 1fr 1fr; }} .pht .row > :last-child {{ grid-column: 1 / -1; }}
}}
"""
