"""How reports look: on a screen of any width, light or dark as its owner has it, and on paper."""

STYLE = """
:root{color-scheme:light dark;--ink:#1b1f24;--quiet:#515b66;--ground:#fff;--raised:#f6f8fa;--edge:#c9d1d9;--line:#dde2e8;
--link:#0b57a4;--good:#1a7f4b;--bad:#c1272d;--bad-ground:#fdf1f1}
@media screen and (prefers-color-scheme:dark){:root{--ink:#e6e9ed;--quiet:#a3adb8;--ground:#14171b;--raised:#1d2228;
--edge:#3b444e;--line:#2c333b;--link:#7db7f0;--good:#4cc38a;--bad:#ff7b72;--bad-ground:#2c1b1c}}
*{box-sizing:border-box}
body{font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;color:var(--ink);
background:var(--ground);max-width:72rem;margin:0 auto;padding:2.5rem 1.5rem}
h1{font-size:1.7rem;line-height:1.25;margin:0 0 .25rem;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2.4rem 0 .6rem;padding-bottom:.3rem;border-bottom:2px solid;overflow-wrap:anywhere}
p{margin:.4rem 0;max-width:62rem}
.quiet,caption,dt,figcaption{color:var(--quiet)}
.verdict{padding:.9rem 1.1rem;border:1px solid var(--edge);border-left:6px solid;margin:1rem 0;background:var(--raised);
overflow-wrap:anywhere}
.sound{border-left-color:var(--good)}.unsound{border-left-color:var(--bad);background:var(--bad-ground)}
.verdict strong{font-size:1.05rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15rem 1.2rem;margin:.6rem 0}
dd{margin:0;overflow-wrap:anywhere}
.wide{overflow-x:auto;margin:.8rem 0}
table{border-collapse:collapse;width:100%;font-size:13.5px}
table.many{min-width:52rem}
caption{text-align:left;padding:0 0 .3rem}
th,td{text-align:left;font-weight:400;padding:.3rem 1rem .3rem 0;border-bottom:1px solid var(--line);vertical-align:top}
thead th{font-weight:600;border-bottom:1px solid var(--ink);white-space:nowrap}
.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.t{white-space:nowrap;font-variant-numeric:tabular-nums}
.w{white-space:nowrap}
thead .n,thead .t,thead .w{width:1%}
.i{overflow-wrap:anywhere}
.s{min-width:9rem;overflow-wrap:anywhere}
.id{color:var(--quiet);font-size:.92em;overflow-wrap:anywhere}
code{font:.92em ui-monospace,"DejaVu Sans Mono",monospace;overflow-wrap:anywhere}
nav ol{columns:2;column-gap:3rem;margin:1rem 0;padding-left:1.6rem}
nav li{overflow-wrap:anywhere;break-inside:avoid}
a{color:var(--link)}
figure{margin:1rem 0 1.4rem}
figure img{display:block;width:100%;max-width:60rem;height:auto}
figcaption{max-width:62rem;font-size:13.5px;margin:.4rem 0}
summary{cursor:pointer;color:var(--link);font-size:13.5px}
@media (max-width:40rem){body{padding:1.2rem 1rem}nav ol{columns:1}dl{grid-template-columns:1fr;gap:0}dd{margin-bottom:.4rem}}
@media screen and (max-width:52rem){figure img{max-width:30rem}}
@page{size:A4;margin:16mm 14mm 18mm;@bottom-right{content:counter(page) " / " counter(pages);font:9pt sans-serif}}
@media print{body{padding:0;max-width:none;font-size:9.5pt}table{font-size:8pt}table.many{min-width:0}.wide{overflow:visible}
h2{break-after:avoid;margin-top:1.6rem}caption{break-after:avoid}tr,.verdict,dl,figure picture{break-inside:avoid}
figure details{display:none}
thead{display:table-header-group}nav{display:none}a{color:inherit;text-decoration:none}th,td{padding-right:.6rem}}
"""
