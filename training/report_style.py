"""The look of the report: one page, no outside resource, light and dark, down to the width of a phone."""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><p class="kicker">{kicker}</p><h1>{heading}</h1><p class="lead">{lead}</p></header>
{body}
<footer>{footer}</footer>
</main>
</body>
</html>
"""

STYLE = """
:root { --paper: #fbfaf7; --ink: #23241f; --soft: #6a6b62; --rule: #e2dfd6; --card: #ffffff;
  --c1: #17726b; --c2: #b9532a; --c3: #5a62b5; --c4: #94751b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #171815; --ink: #e9e7df; --soft: #a09f94; --rule: #33342e; --card: #1f201c;
    --c1: #5cc3b5; --c2: #e8926a; --c3: #9aa3ee; --c4: #d3b04f; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 56px 24px 80px; }
h1, h2 { font-family: ui-serif, "Iowan Old Style", "Palatino Linotype", Georgia, serif; font-weight: 500;
  letter-spacing: -.01em; line-height: 1.15; text-wrap: balance; overflow-wrap: anywhere; }
h1 { font-size: clamp(2rem, 6vw, 3.1rem); margin: 0 0 16px; }
h2 { font-size: 1.6rem; margin: 0 0 16px; }
h2 + .lead { margin-top: -8px; }
h3 { font-size: 1rem; margin: 28px 0 8px; }
.kicker { margin: 0 0 10px; color: var(--c1); font-size: .78rem; letter-spacing: .12em; text-transform: uppercase; }
.lead { max-width: 70ch; text-wrap: pretty; margin: 0 0 20px; color: var(--soft); }
section { margin-top: 56px; padding-top: 28px; border-top: 1px solid var(--rule); }
p { max-width: 70ch; }
.missing { color: var(--soft); font-style: italic; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 18px 28px;
  margin: 24px 0 0; }
.facts div { min-width: 0; }
dt { color: var(--soft); font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
.brief div { display: flex; flex-direction: column-reverse; justify-content: flex-end; gap: 2px; }
.brief dd { font: 500 1.7rem/1.2 ui-serif, "Iowan Old Style", "Palatino Linotype", Georgia, serif; }
figure { margin: 0; min-width: 0; }
figure > img { display: block; width: 100%; height: auto; border-radius: 6px; background: var(--rule); }
figcaption { margin-top: 8px; font-size: .9rem; }
figcaption span { display: block; color: var(--soft); font-size: .82rem; }
.two { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); gap: 28px; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(150px, 1fr)); gap: 14px; margin: 0; padding: 0;
  list-style: none; }
.pairs li { display: grid; grid-template-columns: 1fr 1fr; gap: 3px; }
.pairs img { display: block; width: 100%; height: auto; }
.pairs img:first-child { border-radius: 5px 0 0 5px; } .pairs img:last-child { border-radius: 0 5px 5px 0; }
.strip { display: flex; gap: 16px; overflow-x: auto; padding-bottom: 10px; scroll-snap-type: x proximity; }
.strip figure { flex: 0 0 min(256px, 72vw); scroll-snap-align: start; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 310px), 1fr)); gap: 20px; }
.chart { padding: 16px 16px 12px; border: 1px solid var(--rule); border-radius: 10px; background: var(--card); }
.chart figcaption { margin: 0; font-weight: 600; }
.chart p { margin: 6px 0 0; color: var(--soft); font-size: .8rem; line-height: 1.45; }
.chart ul { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 4px 0 8px; padding: 0; list-style: none;
  font-size: .82rem; color: var(--soft); }
.chart li b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.chart li i { display: inline-block; width: 14px; margin-right: 6px; vertical-align: middle;
  border-top: 3px solid currentColor; border-radius: 2px; }
li.c1 i { color: var(--c1); } li.c2 i { color: var(--c2); } li.c3 i { color: var(--c3); } li.c4 i { color: var(--c4); }
li.ref i { border-top: 2px dashed var(--soft); }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font-size: 12px; font-variant-numeric: tabular-nums; }
svg .y { text-anchor: end; } svg .x { text-anchor: middle; }
svg .grid { stroke: var(--rule); }
polyline { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round; }
polyline.c1 { stroke: var(--c1); } polyline.c2 { stroke: var(--c2); } polyline.c3 { stroke: var(--c3); }
polyline.c4 { stroke: var(--c4); }
polyline.ref { stroke: var(--soft); stroke-width: 1.5; stroke-dasharray: 5 4; }
circle.c1 { fill: var(--c1); } circle.c2 { fill: var(--c2); } circle.c3 { fill: var(--c3); }
circle.c4 { fill: var(--c4); }
.wide { overflow-x: auto; margin: 20px 0; }
table { border-collapse: collapse; width: 100%; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: 9px 14px 9px 0; border-bottom: 1px solid var(--rule); text-align: right; white-space: nowrap; }
th:first-child { text-align: left; white-space: normal; min-width: 10em; font-weight: 500; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--soft); font-size: .8rem; font-weight: 500; vertical-align: bottom; white-space: normal; }
ul.notes { max-width: 70ch; padding-left: 1.1em; color: var(--soft); font-size: .9rem; }
details { border-bottom: 1px solid var(--rule); padding: 8px 0; font-size: .9rem; }
summary { cursor: pointer; }
details .facts { margin: 12px 0; gap: 10px 24px; }
details dd, code, pre { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; font-size: .8rem; }
pre { margin: 0; padding: 16px; overflow-x: auto; border: 1px solid var(--rule); border-radius: 10px;
  background: var(--card); line-height: 1.7; }
footer { margin-top: 64px; color: var(--soft); font-size: .85rem; }
@media (max-width: 520px) { main { padding: 32px 18px 56px; } section { margin-top: 40px; } }
@media print { section { break-inside: avoid; } .strip { flex-wrap: wrap; } }
"""
