"use strict";
// Draws the page's plots in the colours of its style sheet, again when these change; follows a job where it is served.
(() => {
  const main = document.getElementById("main");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const narrow = matchMedia("(max-width: 640px)");
  const finger = matchMedia("(hover: none) and (pointer: coarse)");
  const hidden = new Set();  // names that a reader took away, in all charts that share them
  const logarithmic = new Map();  // by chart: what a reader chose
  let page = JSON.parse(document.getElementById("data").textContent);

  const blocks = () => page.sections.flatMap((section) => section.blocks);
  const charts = () => blocks().filter((block) => block.figure);
  const frame = (id) => main.querySelector(`[data-block="${CSS.escape(id)}"]`);

  // -- colours: "$c1" is the style sheet's --c1, "$c1/0.2" with an opacity

  function colour(name) {
    const [variable, opacity] = name.slice(1).split("/");
    const value = getComputedStyle(document.documentElement).getPropertyValue(`--${variable}`).trim();
    if (!opacity) return value;
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(value.slice(at, at + 2), 16));
    return `rgba(${red},${green},${blue},${opacity})`;
  }

  function coloured(value, key = "") {
    if (typeof value === "string") return /color$/.test(key) && value[0] === "$" ? colour(value) : value;
    if (Array.isArray(value)) return value[0] && typeof value[0] === "object" ? value.map((item) => coloured(item)) : value;
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map(([name, item]) => [name, coloured(item, name)]));
  }

  // -- drawing

  const isLogarithmic = (block) => logarithmic.get(block.id) ?? block.log === "on";

  // 1, 2, 5 of each decade; over many decades 1 only. Plotly's own would be one label or twenty.
  function logTicks(block) {
    const values = block.figure.data.flatMap((trace) => trace.y).filter((value) => value > 0);
    const [low, high] = [Math.min(...values), Math.max(...values)].map((value) => Math.floor(Math.log10(value)));
    const decades = Array.from({ length: high - low + 3 }, (_, at) => low - 1 + at);
    const tickvals = decades.flatMap((power) => (high - low > 3 ? [1] : [1, 2, 5]).map((digit) => Number(`${digit}e${power}`)));
    const suffix = block.figure.layout.yaxis.ticksuffix || "";
    return { tickvals, ticktext: tickvals.map((value) => (Math.abs(Math.log10(value)) > 4 ? value.toExponential() : String(value)) + suffix) };
  }

  function layoutOf(block) {
    const given = block.figure.layout;
    const axis = { automargin: true, zeroline: false, fixedrange: finger.matches, gridcolor: "$grid", linecolor: "$line", tickcolor: "$line" };
    const logs = isLogarithmic(block) ? { type: "log", rangemode: "normal", ...logTicks(block) } : {};
    return coloured({
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: "$muted" },
      paper_bgcolor: "$surface",
      plot_bgcolor: "$surface",
      height: block.figure.height || (narrow.matches ? 250 : 300),
      margin: { l: 4, r: 8, t: 10, b: 4 },
      hovermode: "x unified",
      hoverlabel: { bgcolor: "$surface", bordercolor: "$line", font: { color: "$ink", size: 12 } },
      dragmode: finger.matches ? false : "zoom",
      uirevision: isLogarithmic(block) ? "log" : "linear",
      ...given,
      showlegend: false,
      xaxis: {
        ...axis, showgrid: false, showline: true, ticks: "outside", ...given.xaxis,
        spikethickness: 1, spikedash: "solid", spikecolor: "$muted",
        title: { ...given.xaxis.title, font: { size: 12 }, standoff: 6 },
      },
      yaxis: { ...axis, ...given.yaxis, ...logs },
    });
  }

  const tracesOf = (block) => coloured(block.figure.data).map((trace) => ({ ...trace, visible: !hidden.has(trace.name) }));

  async function draw(block) {
    const plot = frame(block.id).querySelector(".plot");
    await Plotly.react(plot, tracesOf(block), layoutOf(block), { responsive: true, displayModeBar: false, showTips: false });
    nameKeys(block);
    if (!plot.dataset.drawn) plot.on("plotly_relayout", (change) => zoomOthers(block, change));
    plot.dataset.drawn = "yes";
  }

  const drawAll = () => Promise.all(charts().map(draw));

  // The names of the lines, as buttons that take them away and bring them back: unlike plotly's they wrap like words.
  function nameKeys(block) {
    const traces = block.figure.data;
    const named = block.figure.layout.showlegend === false ? [] : traces.filter((trace) => trace.showlegend !== false);
    const keys = traces.length < 2 ? [] : named.map((trace) => {
      const key = document.createElement("button"), sample = document.createElement("span");
      const name = trace.name.replaceAll("&lt;", "<").replaceAll("&gt;", ">").replaceAll("&amp;", "&");
      sample.className = `sample ${trace.type === "bar" || trace.fill ? "area" : trace.mode === "markers" ? "dot" : trace.line.dash || "solid"}`;
      sample.style.setProperty("--own", colour((trace.type === "bar" ? trace.marker : trace.line).color));
      key.type = "button";
      key.dataset.name = trace.name;
      key.setAttribute("aria-pressed", String(!hidden.has(trace.name)));
      key.append(sample, name);
      return key;
    });
    const place = frame(block.id).querySelector(".keys");
    const focused = place.contains(document.activeElement) ? document.activeElement.dataset.name : null;
    place.replaceChildren(...keys);
    keys.find((key) => key.dataset.name === focused)?.focus();
  }

  // Charts that share an x axis zoom together.
  function zoomOthers(from, change) {
    const low = change["xaxis.range[0]"], high = change["xaxis.range[1]"];
    const wanted = low !== undefined ? { "xaxis.range": [low, high] } : change["xaxis.autorange"] ? { "xaxis.autorange": true } : null;
    if (!from.linked || !wanted) return;
    for (const block of charts())
      if (block.linked === from.linked && block.id !== from.id) Plotly.relayout(frame(block.id).querySelector(".plot"), wanted);
  }

  function save(block) {
    const named = block.figure.data.length > 1 && block.figure.layout.showlegend !== false;
    const layout = layoutOf(block);
    const title = { text: [block.title, block.unit].filter(Boolean).join(", "), x: 0.02, xanchor: "left" };
    const shown = { ...layout, title, showlegend: named, legend: { orientation: "h", y: -0.2 }, margin: { l: 20, r: 24, t: 56, b: 20 } };
    const size = { width: 900, height: 480 };
    Plotly.downloadImage({ data: tracesOf(block), layout: { ...shown, ...size } }, { format: "png", scale: 2, ...size, filename: block.id });
  }

  main.addEventListener("click", (event) => {
    const button = event.target.closest("figure button");
    if (!button) return;
    const block = charts().find((chart) => chart.id === button.closest("figure").dataset.block);
    if (button.dataset.do === "png") return save(block);
    if (button.dataset.do === "log") {
      logarithmic.set(block.id, !isLogarithmic(block));
      button.setAttribute("aria-pressed", String(isLogarithmic(block)));
      return draw(block);
    }
    const name = button.dataset.name;
    if (!hidden.delete(name)) hidden.add(name);
    for (const chart of charts()) if (chart.figure.data.some((trace) => trace.name === name)) draw(chart);
  });
  for (const query of [dark, narrow, finger]) query.addEventListener("change", drawAll);

  // -- following a job: only what changed is touched, so that nothing flickers and nothing that was opened closes

  function made(html) {
    const template = document.createElement("template");
    template.innerHTML = html;  // written by squall, which escapes all that comes from files; no script in it would run
    return template.content.firstElementChild;
  }

  function place(parent, before, element) {
    const next = before ? before.nextElementSibling : parent.firstElementChild;
    if (next !== element) parent.insertBefore(element, next);
    return element;
  }

  function sectionOf(section) {
    const element = document.createElement("section"), heading = document.createElement("h2"), inside = document.createElement("div");
    element.id = section.id;
    heading.id = `h-${section.id}`;
    heading.textContent = section.title;
    inside.className = "blocks";
    element.setAttribute("aria-labelledby", heading.id);
    element.append(heading, inside);
    return element;
  }

  function replaced(old, html) {
    const fresh = made(html);
    const boxes = (element) => [...element.querySelectorAll(".scroll, pre")];
    const opened = [...old.querySelectorAll("details")].map((details) => details.open);
    const moved = boxes(old).map((box) => [box.scrollLeft, box.scrollTop]);
    fresh.querySelectorAll("details").forEach((details, at) => { details.open = Boolean(opened[at]); });
    old.replaceWith(fresh);
    boxes(fresh).forEach((box, at) => { if (moved[at]) [box.scrollLeft, box.scrollTop] = moved[at]; });
    return fresh;
  }

  function dropRest(parent, last) {
    const next = () => (last ? last.nextElementSibling : parent.firstElementChild);
    for (let gone = next(); gone; gone = next()) {
      for (const plot of gone.querySelectorAll(".plot")) Plotly.purge(plot);
      gone.remove();
    }
  }

  function renew(block, old) {
    const held = frame(block.id);
    if (!held) return made(block.html);
    if (!block.figure) return old.html === block.html ? held : replaced(held, block.html);
    if (block.log !== old.log) held.querySelector(".tools").replaceWith(made(block.html).querySelector(".tools"));
    held.querySelector("[data-do='log']")?.setAttribute("aria-pressed", String(isLogarithmic(block)));
    held.querySelector(".caption").textContent = block.caption;
    held.querySelector(".plot").setAttribute("aria-label", block.label);
    return held;
  }

  function link(section) {
    const item = document.createElement("li"), anchor = document.createElement("a");
    anchor.href = `#${section.id}`;
    anchor.textContent = section.title;
    item.append(anchor);
    return item;
  }

  async function show(next) {
    const before = new Map(blocks().map((block) => [block.id, block]));
    const changed = (block) => JSON.stringify(before.get(block.id)?.figure) !== JSON.stringify(block.figure);
    let lastSection = null;
    for (const section of next.sections) {
      lastSection = place(main, lastSection, document.getElementById(section.id) || sectionOf(section));
      const inside = lastSection.querySelector(".blocks");
      let last = null;
      for (const block of section.blocks) last = place(inside, last, renew(block, before.get(block.id)));
      dropRest(inside, last);
    }
    dropRest(main, lastSection);
    if (page.head !== next.head) document.getElementById("head").innerHTML = next.head;
    if (page.sections.length !== next.sections.length) document.getElementById("links").replaceChildren(...next.sections.map(link));
    document.title = next.title;
    page = next;
    await Promise.all(charts().filter(changed).map(draw));
  }

  function say(kind, text) {
    const line = document.getElementById("live");
    line.className = `live ${kind}`;
    if (line.textContent !== text) line.textContent = text;
  }

  async function poll(tag) {
    let wait = 10000;
    try {
      const answer = await fetch(document.body.dataset.live, { cache: "no-store", headers: tag ? { "If-None-Match": tag } : {} });
      if (answer.status === 200) {
        tag = answer.headers.get("ETag");
        await show(await answer.json());
      } else if (answer.status !== 304) throw new Error(`status ${answer.status}`);
      if (page.running) wait = 2000;
      say(page.running ? "follows" : "", page.running ? "Follows the run." : "No process works on it now; looks again every ten seconds.");
    } catch (error) {
      say("lost", `squall report does not answer (${error.message}); this is the last that it said.`);
    }
    setTimeout(() => poll(tag), document.hidden ? 10000 : wait);
  }

  drawAll().then(() => { if (document.body.dataset.live) poll(""); });
})();
