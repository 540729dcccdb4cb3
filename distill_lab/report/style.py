"""The look of the report page: one style sheet, light and dark, from phone to desk. No fonts, no images."""

SHADES = 9
"""Of a cell in a matrix, from its share of the row: the classes good-1 to good-9 and bad-1 to bad-9."""
PAGE_STYLE = """
:root{color-scheme:light dark;--page:#f4f6f8;--card:#fff;--ink:#17202b;--muted:#566373;--line:#dfe4ea;--accent:#0b7a70;
--good:#0f6b3f;--good-bg:#e0f3e8;--bad:#a3271c;--bad-bg:#fbe6e3;--open:#8a5200;--open-bg:#fbefd9;--plain-bg:#e9edf1;
--code:#f4f6f8;--mark:#ffe8a3;--edge:#7d8a99}
@media(prefers-color-scheme:dark){:root{--page:#0d1218;--card:#151c24;--ink:#e7ecf2;--muted:#9dabba;--line:#2b3643;
--accent:#2bb5a5;--good:#7fdca8;--good-bg:#123524;--bad:#ff9d92;--bad-bg:#42201c;--open:#f0b866;--open-bg:#3a2a12;
--plain-bg:#242e39;--code:#0d1218;--mark:#5a4708;--edge:#6d7c8d}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,
"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%;
overflow-wrap:anywhere}table{overflow-wrap:break-word}
main{max-width:1040px;margin:0 auto;padding:36px 20px 64px}
.eyebrow{margin:0;color:var(--accent);font-weight:650;font-size:14px}
h1{margin:6px 0 10px;font-size:clamp(25px,4.6vw,38px);line-height:1.16;letter-spacing:-.015em;text-wrap:balance}
h2{margin:44px 0 12px;font-size:21px;letter-spacing:-.01em}
h3{margin:0;font-size:15px}
p{margin:0 0 10px;max-width:74ch}.after{margin-top:8px}.muted{color:var(--muted)}.small{font-size:14px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:14px;margin-top:26px}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:18px}
.tile{display:flex;flex-direction:column;gap:2px}
.tile .top{display:flex;justify-content:space-between;align-items:center;gap:8px}
.tile .number{font-size:34px;font-weight:680;letter-spacing:-.02em;line-height:1.25;
font-variant-numeric:tabular-nums}
.badge{display:inline-block;border-radius:99px;padding:1px 10px;font-size:13px;font-weight:620;white-space:nowrap;
background:var(--plain-bg);color:var(--muted)}
.badge.good{background:var(--good-bg);color:var(--good)}.badge.bad{background:var(--bad-bg);color:var(--bad)}
.badge.open{background:var(--open-bg);color:var(--open)}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:14px}
.figures svg{display:block;width:100%;max-width:480px;height:auto;margin:0 auto}
.scroll{overflow-x:auto;background:
linear-gradient(var(--card),var(--card)) 0/18px 100% no-repeat local,
linear-gradient(var(--card),var(--card)) 100%/18px 100% no-repeat local,
linear-gradient(90deg,var(--line),transparent) 0/9px 100% no-repeat scroll,
linear-gradient(270deg,var(--line),transparent) 100%/9px 100% no-repeat scroll,var(--card)}
.figures{align-items:start}.figures>*{min-width:0}
.figures>.card:only-child{max-width:520px}.by{margin:22px 0 10px}.ends{white-space:nowrap}
table{border-collapse:collapse;width:100%;font-size:15px;font-variant-numeric:tabular-nums}
th,td{padding:8px 10px;text-align:right;border-bottom:1px solid var(--line);vertical-align:top}
th:first-child,td:first-child{text-align:left;padding-left:0}th:last-child,td:last-child{padding-right:0}
tbody th{font-weight:400}thead th{font-size:14px;color:var(--muted);font-weight:620}
tbody tr:last-child>*{border-bottom:0}td.text,th.text{text-align:left}
td.student,th.student{font-weight:650;color:var(--ink)}
.outcomes{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:14px;margin:0 0 14px}
.outcomes b{display:block;font-size:24px;line-height:1.3;font-variant-numeric:tabular-nums}
.outcomes .card{padding:12px 18px}
.example{margin-top:14px}.example .top{display:flex;justify-content:space-between;gap:10px;flex-wrap:wrap;
align-items:center;margin-bottom:10px}
.text-block{max-width:none;white-space:pre-wrap;overflow-wrap:anywhere;margin:0}
.question{background:var(--code);border-radius:8px;padding:10px 12px;font-size:15px}
.gold{margin:8px 0 0;font-size:14px}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(240px,1fr));gap:12px 22px;margin-top:14px}
.answer{border-top:3px solid var(--line);padding-top:8px;font-size:15px;min-width:0}
.answer.student{border-color:var(--accent)}
.answer .top{margin-bottom:4px}
details{margin-top:8px}summary{cursor:pointer;color:var(--muted);font-size:14px;padding:4px 0}
summary:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:4px}
pre{margin:6px 0 0;background:var(--code);border-radius:8px;padding:12px;overflow-x:auto;font:13px/1.5 ui-monospace,
SFMono-Regular,Menlo,Consolas,monospace}
@media(max-width:560px){main{padding:24px 14px 48px}.card{padding:14px}th,td{padding:7px 6px}table{font-size:14px}
thead th{font-size:13px}.wide{display:none}
.ends,.badge{white-space:normal}}
.skip{position:absolute;left:-999px;top:0;background:var(--card);color:var(--ink);padding:10px 16px;z-index:2}
.skip:focus{left:8px}main:focus{outline:0}
a{color:var(--accent)}nav ul{list-style:none;display:flex;flex-wrap:wrap;gap:4px 16px;margin:18px 0 0;padding:10px 0;
border-top:1px solid var(--line);border-bottom:1px solid var(--line);font-size:14px}nav a{display:inline-block;
padding:4px 0}
:focus-visible{outline:2px solid var(--accent);outline-offset:2px;border-radius:4px}
section{scroll-margin-top:12px}section.card{scroll-margin-top:0}
.sr{position:absolute;width:1px;height:1px;margin:-1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,150px),1fr));gap:10px 22px;margin:18px 0 0}
.facts dt{font-size:13px;color:var(--muted)}.facts dd{margin:0;overflow-wrap:anywhere}
.steps{margin:0;padding-left:20px}.steps li+li{margin-top:8px}
mark{background:var(--mark);color:inherit;text-decoration:underline;text-decoration-thickness:2px;
text-underline-offset:3px;border-radius:3px}
.controls{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,200px),1fr));gap:12px 16px}
.control,.check{display:flex;flex-direction:column;gap:4px;min-width:0}.check{flex-direction:row;align-items:center;gap:8px;
grid-column:1/-1}
.control input,.control select,.pages button,.controls button{font:inherit;font-size:15px;color:var(--ink);
background:var(--card);border:1px solid var(--edge);border-radius:8px;padding:8px 10px;min-height:40px;
width:100%;min-width:0}
.check input{width:24px;height:24px;margin:0;flex:none;accent-color:var(--accent)}
.pages{display:flex;flex-wrap:wrap;gap:8px 12px;align-items:center;margin-top:16px}.pages button,.controls button{
width:auto;cursor:pointer}.controls button{justify-self:start;grid-column:1/-1}
.pages button:disabled{color:var(--muted);cursor:default;border-color:var(--line)}
#items-status{margin:14px 0 0}.answer h4{margin:0;font-size:15px}.example h3{margin:0}
@media print{:root{color-scheme:light}body{background:#fff;font-size:12px}main{max-width:none;padding:0}
.card{break-inside:avoid}.example{break-inside:auto}h2,h3{break-after:avoid}nav,.skip,.controls,.pages,#items-off{display:none}
.scroll{overflow:visible}.figures,.tiles{break-inside:avoid}pre{white-space:pre-wrap;overflow-wrap:anywhere}}
""" + "".join(
    f".{kind}-{shade}{{background:color-mix(in srgb,var(--{kind}) {5 * shade}%,transparent)}}\n"
    for kind in ("good", "bad")
    for shade in range(1, SHADES + 1)
)
