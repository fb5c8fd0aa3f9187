"""How the auditor's report looks: dark on white, on a screen of any width and on paper."""

STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:#1b1f24;background:#fff;
max-width:72rem;margin:0 auto;padding:2.5rem 1.5rem}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .25rem}
h2{font-size:1.15rem;margin:2.4rem 0 .6rem;padding-bottom:.3rem;border-bottom:2px solid #1b1f24}
p{margin:.4rem 0}
.quiet,caption,dt{color:#515b66}
.verdict{padding:.9rem 1.1rem;border:1px solid #c9d1d9;border-left:6px solid;margin:1rem 0;background:#f6f8fa}
.sound{border-left-color:#1a7f4b}.unsound{border-left-color:#c1272d;background:#fdf1f1}
.verdict strong{font-size:1.05rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;margin:.6rem 0}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:13.5px}
table.many{min-width:52rem}
caption{text-align:left;padding:0 0 .3rem}
th,td{text-align:left;font-weight:400;padding:.3rem 1rem .3rem 0;border-bottom:1px solid #dde2e8;vertical-align:top}
thead th{font-weight:600;border-bottom:1px solid #1b1f24;white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.t{white-space:nowrap;font-variant-numeric:tabular-nums}
.w{white-space:nowrap}
thead .n,thead .t,thead .w{width:1%}
.i{overflow-wrap:anywhere}
.id{color:#515b66;font-size:.92em;overflow-wrap:anywhere}
code{font:.92em ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
nav ol{columns:2;margin:1rem 0;padding-left:1.6rem}
a{color:#0b57a4}
@media (max-width:40rem){body{padding:1.2rem 1rem}nav ol{columns:1}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.4rem}}
@page{size:A4;margin:16mm 14mm 18mm;@bottom-right{content:counter(page) " / " counter(pages);font:9pt sans-serif}}
@media print{body{padding:0;max-width:none;font-size:9.5pt}table{font-size:8pt}table.many{min-width:0}.wide{overflow:visible}
h2{break-after:avoid;margin-top:1.6rem}caption{break-after:avoid}tr,.verdict,dl{break-inside:avoid}
thead{display:table-header-group}nav{display:none}a{color:inherit;text-decoration:none}th,td{padding-right:.6rem}}
"""
