"""The frame of the report's page and how it looks: on a screen, on a phone, on paper."""

# Nothing is loaded and nothing runs: the page itself says so to the browser.
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="generator" content="harness compare">
<title>Comparison of runs</title>
<style>
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 75rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, sans-serif; }
h1, h2, h3 { line-height: 1.25; margin: 2rem 0 .5rem; break-after: avoid; }
caption { break-after: avoid; }
tr { break-inside: avoid; }
h1 { margin-top: .5rem; }
h2 { border-bottom: 2px solid #1a1a1a; padding-bottom: .25rem; }
p, li { max-width: 48rem; }
a { color: #00507d; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem; }
.wide th, .wide td { padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #d0d0d0; }
.wide thead th { border-bottom: 2px solid #1a1a1a; white-space: nowrap; }
.wide th[scope=row] { font-weight: 500; }
.wide th.short { white-space: nowrap; }
.wide td.number, .wide th.number { text-align: right; white-space: nowrap; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em;
  border-radius: 2px; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.pictures { display: grid; gap: 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 28rem), 1fr)); }
figure { margin: 0; break-inside: avoid; }
figure img { display: block; width: 100%; height: auto; }
figcaption { font-size: .9rem; }
.confusions { display: flex; flex-wrap: wrap; gap: 1.25rem; }
.confusion { break-inside: avoid; font-size: .9rem; }
.confusion caption { overflow-wrap: anywhere; }
.confusion th { font-weight: 400; padding: .2rem .5rem .2rem 0; text-align: left; }
.confusion td { padding: .4rem .6rem; text-align: center; border: 1px solid #fff;
  -webkit-print-color-adjust: exact; print-color-adjust: exact; }
.review { border-left: 3px solid #d0d0d0; padding-left: .75rem; margin: 1rem 0;
  max-width: 48rem; break-inside: avoid; }
.review p { margin: 0; }
.review blockquote { margin: .5rem 0; overflow-wrap: anywhere; }
summary { cursor: pointer; overflow-wrap: anywhere; }
@media print {
  body { font-size: 9pt; max-width: none; padding: 0; }
  .wide { overflow: visible; }
  .wide th, .wide td { padding-right: .4rem; }
  .pictures { grid-template-columns: 1fr 1fr; }
}
</style>
</head>
<body>
<header><h1>Comparison of runs</h1><p>$summary</p>$contents</header>
<main>
$sections
<section><h2>Hardware and versions</h2>$records</section>
<section><h2>Runs that are kept apart</h2>$left_out</section>
</main>
</body>
</html>
"""
