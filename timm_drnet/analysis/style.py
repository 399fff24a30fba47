"""The look of the page of an analysis, in light and in dark, and the one thing that moves on it: sorting a table."""

SIZE_STYLES = tuple(f's{i}' for i in range(5))
"""CSS classes of the resolutions, the largest first: a dark blue to a light one, then another colour."""

OUTCOME_STYLES = ('just_right', 'needlessly_large', 'too_small', 'only_smaller_right', 'none_right')
"""CSS classes of what became of an image."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f5f7f9; --ink: #1a1d21; --soft: #565d66; --line: #d5dae0; --accent: #1d5fa6;
  --s0: #1f4e8c; --s0t: #ffffff; --s1: #6aa5db; --s1t: #08131f; --s2: #cfe3f4; --s2t: #08131f;
  --s3: #0f766e; --s3t: #ffffff; --s4: #8fd0c8; --s4t: #08131f;
  --edge: #43566b;
  --just_right: #17795a; --just_rightt: #ffffff; --needlessly_large: #e3b341; --needlessly_larget: #241a00;
  --too_small: #b93f22; --too_smallt: #ffffff; --only_smaller_right: #7a4fa0; --only_smaller_rightt: #ffffff;
  --none_right: #b9c0c8; --none_rightt: #14171a;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --raised: #1d2126; --ink: #e8eaed; --soft: #a8b0ba; --line: #3a414a; --accent: #7db7f0;
    --s0: #9cc8f2; --s0t: #08131f; --s1: #3671ad; --s1t: #ffffff; --s2: #1d3f66; --s2t: #ffffff;
    --s3: #6fd3c6; --s3t: #08131f; --s4: #1f5e58; --s4t: #ffffff;
    --edge: #8fa3b8;
    --just_right: #4cc29a; --just_rightt: #04140e; --needlessly_large: #e3b341; --needlessly_larget: #241a00;
    --too_small: #f08a6c; --too_smallt: #200a03; --only_smaller_right: #bd97e0; --only_smaller_rightt: #160a20;
    --none_right: #59626d; --none_rightt: #ffffff;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 68rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .25rem; text-wrap: balance; }
h2 {
  font-size: 1.25rem; line-height: 1.25; margin: 3rem 0 .5rem; padding-top: 1rem; border-top: 1px solid var(--line);
}
h3 { font-size: 1rem; margin: 1.75rem 0 .5rem; }
p, ul, ol, dl { max-width: 44rem; margin: .5rem 0 1rem; }
a { color: var(--accent); }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.soft, figcaption, caption { color: var(--soft); }
.notice {
  border: 1px solid var(--too_small); border-left-width: 6px; padding: .6rem 1rem; border-radius: 4px;
  margin-bottom: 1.25rem;
}
.notice p, .notice ul { margin: .25rem 0; max-width: none; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(13rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.tile { background: var(--raised); border-radius: 8px; padding: .8rem 1rem; }
.tile dt { font-weight: 600; }
.tile dd { margin: 0; color: var(--soft); font-size: .925rem; line-height: 1.4; }
.tile dd.figure { color: var(--ink); font-size: 1.7rem; line-height: 1.3; font-weight: 650; letter-spacing: -.01em; }
.tiles, dl.plain { max-width: none; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1.5rem 2.5rem; }
.pair > * { min-width: 0; }
figure { margin: 0; }
.chart { display: block; width: 100%; max-width: 34rem; height: auto; overflow: visible; font-size: 13px; }
.chart text { fill: var(--ink); }
.chart .small { font-size: 12px; fill: var(--soft); }
.chart .halo { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round; }
.grid { stroke: var(--line); stroke-width: 1; fill: none; }
.axis { stroke: var(--soft); stroke-width: 1; fill: none; }
.join { stroke: var(--soft); stroke-width: 1.5; fill: none; }
.error { stroke: var(--ink); stroke-width: 1.5; fill: none; }
.ideal { stroke: var(--ink); stroke-width: 1.5; stroke-dasharray: 5 4; fill: none; }
.bar { fill: var(--s1); stroke: var(--edge); stroke-width: 1; }
.mark { fill: var(--accent); stroke: var(--paper); stroke-width: 1; }
.mark.circle { fill: var(--soft); }
.mark.square { fill: var(--paper); stroke: var(--ink); stroke-width: 2; }
.mark.star { fill: var(--too_small); }
.mark.triangle { fill: var(--just_right); }
.mark.open-triangle { fill: var(--paper); stroke: var(--just_right); stroke-width: 2; }
.mark.dot { fill: var(--ink); }
.segment { stroke: var(--edge); stroke-width: 1; }
.key { vertical-align: -.25rem; margin-right: .3rem; }
.swatch {
  display: inline-block; width: .95em; height: .95em; margin-right: .35em; vertical-align: -.1em; border-radius: 2px;
  border: 1px solid var(--edge); text-indent: 0;
}
.legend { list-style: none; padding: 0; margin-top: 0; }
.legend li { margin: .3rem 0; padding-left: 1.4rem; text-indent: -1.4rem; }
.scroll { overflow-x: auto; margin: .75rem 0 1rem; }
table { border-collapse: collapse; font-size: .94rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding-bottom: .4rem; caption-side: top; }
caption span { display: block; position: sticky; left: 0; max-width: min(34rem, calc(100vw - 2rem)); }
th, td { padding: .35rem .7rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: baseline; }
th:first-child, td:first-child { padding-left: 0; }
th[scope=row], th.text, td.text { text-align: left; }
th[scope=row] { font-weight: 500; }
th.keyed { padding-left: 1.5rem; text-indent: -1.5rem; }
thead th { vertical-align: bottom; font-weight: 600; border-bottom: 2px solid var(--line); }
tr.used th, tr.used td { font-weight: 700; }
.confusion td { --part: 0%; background: color-mix(in srgb, var(--accent) var(--part), transparent); min-width: 6rem; }
.confusion td.agree { box-shadow: inset 0 0 0 2px var(--ink); font-weight: 700; }
.confusion th:first-child, .confusion td:first-child { padding-left: .7rem; }
.confusion small { display: block; font-weight: 400; }
.sortable thead { position: sticky; top: 0; background: var(--paper); }
.sortable th button { all: unset; cursor: pointer; font-weight: 600; text-decoration: underline dotted; }
.sortable th button:focus-visible { outline: 3px solid var(--accent); }
.sortable th[aria-sort=ascending] button::after { content: " \\25B2"; }
.sortable th[aria-sort=descending] button::after { content: " \\25BC"; }
.sortable tbody th { position: sticky; left: 0; background: var(--paper); }
.tall { max-height: 40rem; overflow-y: auto; }
.strip { width: 7rem; height: .8rem; vertical-align: -.1rem; }
.sheet {
  list-style: none; padding: 0; margin: .75rem 0 0; max-width: none; display: grid; gap: 1rem .75rem;
  grid-template-columns: repeat(auto-fill, minmax(6.9rem, 1fr));
}
.sheet img, .sheet .gone {
  display: block; width: 100%; height: auto; aspect-ratio: 1; border-radius: 6px; background: var(--raised);
  border: 1px solid var(--line);
}
.sheet .gone { display: grid; place-items: center; text-align: center; font-size: .8rem; color: var(--soft); }
.sheet li { font-size: .82rem; line-height: 1.35; min-width: 0; }
.sheet b { display: block; margin-top: .3rem; font-weight: 600; }
.sheet span { display: block; color: var(--soft); }
.sheet .wrong { color: var(--too_small); }
dl.plain { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.25rem; font-size: .94rem; }
dl.plain dt { color: var(--soft); }
dl.plain dd { margin: 0; min-width: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
code { font-size: .92em; overflow-wrap: anywhere; }
@media (max-width: 30rem) {
  th, td { padding: .35rem .45rem; }
  .confusion td { min-width: 4.2rem; }
  dl.plain { grid-template-columns: 1fr; }
  dl.plain dd { margin-bottom: .4rem; }
}
@media print {
  .tall { max-height: none; }
  .sortable thead, .sortable tbody th { position: static; }
}
"""

CSS += ''.join(
    f'.{name} {{ fill: var(--{name}); background: var(--{name}); }} .chart .on.{name} {{ fill: var(--{name}t); }}\n'
    for name in (*SIZE_STYLES, *OUTCOME_STYLES))

SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => {
    const button = document.createElement('button');
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener('click', () => {
      const sorted = head.getAttribute('aria-sort');
      const text = head.classList.contains('text');
      const up = sorted ? sorted === 'descending' : text;
      const value = row => row.cells[column].dataset.value;
      const rows = [...body.rows].sort((a, b) =>
        (up ? 1 : -1) * (text ? value(a).localeCompare(value(b)) : value(a) - value(b)));
      heads.forEach(other => other.removeAttribute('aria-sort'));
      head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
      body.append(...rows);
    });
  });
}
"""
