"""How the page looks, and the few lines of script that open a layer one jumps to."""

from __future__ import annotations

_LIGHT = (
    "--paper:#fff;--card:#f5f6f8;--ink:#1f2328;--soft:#59636e;--grid:#dde1e6;--line:#d1d6dc;"
    "--link:#0a58ca;--data:#3b76b5;--tail:#c93a50;--mark1:#b8500b;--mark2:#1d7a56;--mark3:#7441b8;"
    "--mark4:#7d6300;--mark5:#00727f;--good:#1d7a56;--note:#3b76b5;--warn:#b8500b"
)
_DARK = (
    "--paper:#15181d;--card:#1f242b;--ink:#e4e7eb;--soft:#a3adb8;--grid:#333b45;--line:#3b444f;"
    "--link:#7fb3ff;--data:#6aa3dd;--tail:#ff7286;--mark1:#ffa25c;--mark2:#5fd0a0;--mark3:#c39bff;"
    "--mark4:#e0c255;--mark5:#52cbd8;--good:#5fd0a0;--note:#6aa3dd;--warn:#ffa25c"
)
STYLE = (
    f":root{{color-scheme:light;{_LIGHT}}}"
    f"@media (prefers-color-scheme:dark){{:root{{color-scheme:dark;{_DARK}}}}}"
    f":root:has(#light:checked){{color-scheme:light;{_LIGHT}}}"
    f":root:has(#dark:checked){{color-scheme:dark;{_DARK}}}"
    f"@media print{{:root{{color-scheme:light;{_LIGHT}}}.theme,.buttons{{display:none}}}}"
    """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);overflow-wrap:anywhere;
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif}
main,header,footer{max-width:1020px;margin:0 auto;padding:0 16px}
header{display:flex;flex-wrap:wrap;gap:8px 16px;align-items:center;justify-content:space-between;
 padding-top:20px}
h1{font-size:1.45rem;line-height:1.25;margin:0}
h2{font-size:1.2rem;margin:36px 0 10px;padding-bottom:4px;border-bottom:1px solid var(--line)}
p{margin:8px 0}
a{color:var(--link)}
.soft,footer{color:var(--soft);font-size:.9rem}
footer{padding-top:24px;padding-bottom:40px}
.theme{display:flex;border:1px solid var(--line);border-radius:8px;margin:0;padding:0;
 overflow:hidden}
.theme input{position:absolute;opacity:0;width:1px;height:1px}
.theme label{padding:6px 12px;cursor:pointer;font-size:.9rem}
.theme input:checked+label{background:var(--ink);color:var(--paper)}
.theme input:focus-visible+label{outline:2px solid var(--link);outline-offset:-3px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;
 margin:16px 0}
.cards div{background:var(--card);border-radius:10px;padding:10px 14px}
.cards b{display:block;font-size:1.3rem;line-height:1.3}
.cards span{color:var(--soft);font-size:.85rem}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:0 24px;
 margin:8px 0}
.facts div{display:flex;gap:12px;justify-content:space-between;padding:4px 0;
 border-bottom:1px solid var(--grid)}
dt{color:var(--soft);flex:none;max-width:60%}
dd{margin:0;text-align:right;min-width:0}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;width:100%;font-size:.95rem;font-variant-numeric:tabular-nums}
th,td{padding:6px 10px;text-align:right;border-bottom:1px solid var(--grid);vertical-align:top}
th:first-child{text-align:left;min-width:9rem}
.ranking th:first-child{min-width:13rem}
thead th{color:var(--soft);font-weight:500;font-size:.85rem;overflow-wrap:break-word}
tbody th{font-weight:500}
td{overflow-wrap:normal}
.ranking td,.accuracy td,.interval{white-space:nowrap}
.interval{color:var(--soft);font-size:.9em}
.bar{display:inline-block;height:8px;border-radius:4px;background:var(--data);margin-left:8px;
 vertical-align:middle}
.bar.weak{background:var(--warn)}
.advice{list-style:none;margin:0;padding:0}
.advice li{background:var(--card);border-left:5px solid var(--note);border-radius:6px;
 padding:8px 12px;margin:8px 0}
.advice li.warn{border-color:var(--warn)}
.advice li.good{border-color:var(--good)}
.advice b{margin-right:6px}
.advice .warn b{color:var(--warn)}.advice .good b{color:var(--good)}
.advice .note b{color:var(--note)}
details{border:1px solid var(--line);border-radius:10px;margin:8px 0;background:var(--paper);
 scroll-margin-top:8px}
summary{cursor:pointer;padding:10px 14px;display:flex;flex-wrap:wrap;gap:2px 14px;
 align-items:baseline}
summary::before{content:"▸";color:var(--soft)}
details[open]>summary::before{content:"▾"}
summary::-webkit-details-marker{display:none}
summary .name{font-weight:600;flex:1 1 160px;min-width:0}
.body{padding:0 14px 14px}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,330px),1fr));
 gap:18px 24px; margin-top:14px}
figure{margin:0;min-width:0}
figcaption b{display:block}
figcaption p{margin:2px 0 6px}
svg.plot{display:block;width:100%;height:auto;max-width:540px;
 font:13px system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",Arial,sans-serif}
svg.wide{max-width:none}
svg path{stroke-linejoin:round}
.legend{list-style:none;margin:4px 0 0;padding:0;display:flex;flex-wrap:wrap;gap:2px 16px;
 font-size:.87rem}
.key{display:inline-block;width:18px;height:0;border-top:3px solid;margin-right:6px;
 vertical-align:middle}
.key.area{height:10px;border:0;border-radius:2px}
.key.dashed{border-top-style:dashed}.key.dotted{border-top-style:dotted}
.buttons{display:flex;gap:8px;margin:10px 0}
button{font:inherit;font-size:.9rem;padding:6px 12px;border:1px solid var(--line);border-radius:8px;
 background:var(--card);color:var(--ink);cursor:pointer}
@media (max-width:600px){
 table{font-size:.87rem}
 th,td{padding:6px 5px}
 th:first-child{min-width:6rem;padding-left:0}
 .ranking th:first-child{min-width:8.2rem}
 thead th{font-size:.8rem}
 th:has(.wider),td:has(.wider),.bar{display:none}
 .interval{display:block}
 svg.wide.plot{width:720px;max-width:none}
 .facts{grid-template-columns:1fr}
}
"""
)
SCRIPT = """
const layers = document.querySelectorAll("details.layer");
function openTarget() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target instanceof HTMLDetailsElement) { target.open = true; target.scrollIntoView(); }
}
addEventListener("hashchange", openTarget);
openTarget();
for (const [id, open] of [["open-all", true], ["close-all", false]])
  document.getElementById(id).addEventListener("click", () => {
    for (const layer of layers) layer.open = open;
  });
document.documentElement.dataset.ready = String(layers.length);
"""
