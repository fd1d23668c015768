"""Style sheet of a sweep's page: light or dark as the system is, a table on wide screens, cards on narrow ones."""

STYLE = """
:root {
  color-scheme: light dark;
  --ground: #fbfaf7; --sheet: #ffffff; --ink: #1d2733; --soft: #5c6875; --line: #e2ded5;
  --accent: #c2571a; --accent-soft: #f3e4d8; --base: #f4f2ec;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #14181d; --sheet: #1b2027; --ink: #e4e7ea; --soft: #98a3ae; --line: #303842;
    --accent: #f0965a; --accent-soft: #3a2c23; --base: #20262e;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.5rem 3rem; max-width: 78rem; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 1rem; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; line-height: 1.35; margin: 2.25rem 0 .6rem; overflow-wrap: anywhere; white-space: pre-wrap; }
h2.prompt { border-left: 4px solid var(--accent); padding-left: .7rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0; font-size: .9rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code { color: var(--soft); font-size: .8em; font-family: ui-monospace, "Liberation Mono", monospace; }
table { border-collapse: collapse; width: 100%; background: var(--sheet); border: 1px solid var(--line); }
thead th { color: var(--soft); font-size: .8rem; font-weight: 500; border-bottom: 1px solid var(--line); white-space: nowrap; }
th, td { text-align: left; vertical-align: top; padding: .55rem .8rem; }
tbody tr + tr > * { border-top: 1px solid var(--line); }
tbody th { font-weight: 500; }
tr.base { background: var(--base); }
.part { white-space: nowrap; }
.part b { color: var(--accent); font-variant-numeric: tabular-nums; }
.answer { width: 52%; overflow-wrap: anywhere; white-space: pre-wrap; }
.cut, .empty, .speed { color: var(--soft); }
.speed { display: block; font-size: .78rem; }
.number, .value { font-variant-numeric: tabular-nums; }
.bar { min-width: 7rem; }
.overview { width: auto; }
.overview .bar { display: grid; grid-template-columns: 3.5rem 1fr; align-items: center; min-width: min(24rem, 55vw); }
.overview .track { margin: 0; }
.overview :is(th, td) { padding: .35rem .8rem; }
.track { display: block; height: .45rem; margin-top: .3rem; border-radius: .25rem; overflow: hidden; }
.track { background: var(--accent-soft); }
.track i { display: block; height: 100%; background: var(--accent); }
svg { display: block; max-width: 100%; height: 28px; }
rect { fill: var(--accent); }
rect:hover { fill: var(--ink); }
tr.base rect { fill: var(--soft); }
footer { margin-top: 2rem; color: var(--soft); font-size: .85rem; max-width: 46rem; }
@media (max-width: 46rem) {
  body { padding: 1.25rem .9rem 2rem; }
  dl { grid-template-columns: 1fr; gap: 0; }
  dd { margin-bottom: .4rem; }
  table:not(.overview) thead { display: none; }
  table:not(.overview) tr { display: block; padding: .7rem .9rem; }
  table:not(.overview) tr + tr { border-top: 1px solid var(--line); }
  table:not(.overview) :is(th, td) { display: block; width: auto; padding: .15rem 0; border: 0; }
  .overview { width: 100%; }
  [data-name] { display: grid !important; grid-template-columns: 7.5rem 1fr; align-items: center; font-size: .9rem; }
  [data-name]::before { content: attr(data-name); color: var(--soft); }
  .bar[data-name] { grid-template-columns: 7.5rem 3.5rem 1fr; }
  .bar[data-name] .track { margin: 0; }
}
"""
