"""How a report looks: one style sheet, light and dark, from a phone to a wide screen."""

STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf7; --card: #fff; --ink: #1d1f23;
  --soft: #686c74; --line: #e4e2dc; --c0: #0b6bab; --c1: #c8560a; --c2: #0a8563; --c3: #a8508a;
  --c4: #9a7400; --c5: #4b7f9e; --zero: #dcdad3; --s0: #17567f; --s1: #4f94bf; --s2: #a5cbe0;
  --s3: #d8b26a; --s4: #d0cdc4; --s5: #aeaba2; }
@media (prefers-color-scheme: dark) { :root { --paper: #141518; --card: #1c1e22; --ink: #e9e7e2;
  --soft: #9a9da5; --line: #303339; --c0: #62b4ea; --c1: #f0985a; --c2: #4cc7a0; --c3: #dd92c4;
  --c4: #d9b441; --c5: #9cc6dd; --zero: #3b3e45; --s0: #8ccbf2; --s1: #4c92bf; --s2: #2f5c7b;
  --s3: #d8b26a; --s4: #6f6d67; --s5: #4d4c48; } }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); }
.c3 { --c: var(--c3); } .c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.55 system-ui,
  -apple-system, "Segoe UI", Roboto, sans-serif; -webkit-text-size-adjust: 100%; }
.page { max-width: 1080px; margin: 0 auto; padding: 48px 20px 64px; }
h1, h2, h3, p { margin: 0; }
.eyebrow { font-size: 12px; letter-spacing: .12em; text-transform: uppercase; color: var(--soft); }
h1 { font-size: clamp(26px, 5vw, 38px); line-height: 1.15; font-weight: 650; margin: 6px 0 10px;
  letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { font-size: 20px; font-weight: 650; letter-spacing: -.01em; margin-top: 52px; }
h3 { font-size: 14px; font-weight: 600; }
.lead, .note { color: var(--soft); max-width: 68ch; } .note { font-size: 13.5px; margin-top: 4px; }
.plots + .note, .wide + .note { margin-top: 14px; }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; margin-top: 16px; font-size: 14px; }
.legend i, .dot { display: inline-block; width: 10px; height: 10px; border-radius: 50%;
  background: var(--c); margin-right: 8px; }
.parts i { border-radius: 2px; }
.cards { display: grid; gap: 14px; margin-top: 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 300px), 1fr)); }
.plots { display: grid; gap: 14px; margin-top: 18px;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 380px), 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px 18px; min-width: 0; }
.card h3 { color: var(--soft); font-weight: 500; font-size: 13px; }
.plots .card h3 { color: var(--ink); font-weight: 600; font-size: 14px; }
.value { font-size: 27px; font-weight: 620; letter-spacing: -.02em; line-height: 1.25;
  font-variant-numeric: tabular-nums; margin-top: 4px; }
.several .value { font-size: 20px; } .value small { font-size: 14px; font-weight: 450;
  color: var(--soft); letter-spacing: 0; }
.value.none { font-size: 15px; font-weight: 450; color: var(--soft); letter-spacing: 0;
  padding: 7px 0 6px; }
.track { height: 4px; border-radius: 2px; background: var(--line); margin: 6px 0 2px; }
.track b { display: block; height: 100%; border-radius: 2px; background: var(--c); }
.card .note { font-size: 12.5px; margin-top: 6px; line-height: 1.45; }
svg { display: block; width: 100%; height: auto; margin-top: 10px; }
svg.bar { height: 20px; margin: 6px 0 2px; border-radius: 4px; overflow: hidden; }
svg text { font-size: 12px; fill: var(--soft); font-variant-numeric: tabular-nums; }
svg .grid { stroke: var(--line); } svg .base { stroke: var(--soft); opacity: .6; }
svg .line { fill: none; stroke: var(--c); stroke-width: 2; stroke-linejoin: round; }
svg .range { stroke: var(--c); opacity: .45; }
svg circle { fill: var(--card); stroke: var(--c); stroke-width: 2; }
.p0 { --c: var(--c0); } .p1 { --c: var(--zero); } .p2 { --c: var(--c1); }
.s0 { --c: var(--s0); } .s1 { --c: var(--s1); } .s2 { --c: var(--s2); } .s3 { --c: var(--s3); }
.s4 { --c: var(--s4); } .s5 { --c: var(--s5); } svg rect { fill: var(--c); }
.wide { overflow-x: auto; margin-top: 14px; padding: 4px 18px; }
.bars { margin-top: 14px; } .bars .legend { margin-top: 12px; font-size: 13px; }
.bars svg + h3 { margin-top: 14px; } h3 small { font-weight: 400; color: var(--soft); }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 9px 0 9px 24px; border-top: 1px solid var(--line);
  white-space: nowrap; } tr:first-child > * { border-top: 0; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
thead th { font-weight: 600; font-size: 14px; } tbody th { font-weight: 450; color: var(--soft); }
.tag { font-size: 11px; letter-spacing: .04em; border: 1px solid var(--line); border-radius: 99px;
  padding: 1px 8px; color: var(--soft); margin-left: 8px; }
@media (min-width: 760px) { .one tbody { display: grid; grid-auto-flow: column;
  grid-template: repeat(var(--half), auto) / 1fr 1fr; column-gap: 48px; }
  .one tr { display: flex; justify-content: space-between; border-top: 1px solid var(--line); }
  .one .top { border-top: 0; } .one th, .one td { border: 0; } }
.none { color: var(--soft); }
footer { margin-top: 56px; padding-top: 16px; border-top: 1px solid var(--line); font-size: 13px;
  color: var(--soft); }
code { font: .92em ui-monospace, SFMono-Regular, Menlo, monospace; overflow-wrap: anywhere; }
@media (max-width: 520px) { .page { padding: 28px 16px 48px; } h2 { margin-top: 40px; }
  .card { padding: 14px; } .wide { padding: 2px 14px; } .tag { margin-left: 4px; }
  .cards { grid-template-columns: 1fr 1fr; } .value { font-size: 22px; }
  .several .value { font-size: 18px; } .value small { font-size: 12px; }
  .value.none, .several .value.none { font-size: 13px; padding: 5px 0 4px; }
  .cards .card:last-child:nth-child(odd) { grid-column: span 2; }
  th, td { padding-left: 14px; font-size: 14px; } thead th { white-space: normal; }
  tbody th { white-space: normal; min-width: 116px; position: sticky; left: 0;
    background: var(--card); } }
@media print { body { background: none; } .card { break-inside: avoid; } }
"""
