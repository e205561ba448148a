"use strict";
// The roofline explorer. No formula of the model is written here: Python left them as nodes, which are evaluated for
// what is chosen (analysis/roofline/explorer.py). A selection is in the address, so that a link restores it.
(() => {
  const MARK = "#explorer?";
  const OPERATIONS = {
    add: (a, b) => a + b,
    sub: (a, b) => a - b,
    mul: (a, b) => a * b,
    div: (a, b) => a / b,
    floordiv: (a, b) => Math.floor(a / b),
    pow: (a, b) => a ** b,
    min: Math.min,
    max: Math.max,
    lt: (a, b) => Number(a < b),
    le: (a, b) => Number(a <= b),
    gt: (a, b) => Number(a > b),
    ge: (a, b) => Number(a >= b),
    where: (condition, a, b) => (condition ? a : b),
  };
  const PARTS = [["memory", "memory_s"], ["compute", "compute_s"], ["launch", "launch_s"], ["link", "link_s"]];
  const BOUNDS = { memory: ["#3b7dd8", "circle"], compute: ["#e0812e", "square"], launch: ["#9a6dd7", "diamond"], link: ["#2a9d74", "x"] };
  const LABELLED = 0.05; // share of the time from which an operator has its name in the plot

  const byId = (id) => document.getElementById(`explorer-${id}`);
  const form = byId("form");
  let data = null;

  // The value of any node, for inputs by name.
  const evaluator = (given) => {
    const inputs = data.inputs.map((name) => given[name]);
    const found = new Array(data.nodes.length);
    const value = (index) => {
      if (found[index] === undefined) {
        const [place, ...operands] = data.nodes[index];
        const operation = data.operations[place];
        if (operation === "input") found[index] = inputs[operands[0]] ?? NaN;
        else if (operation === "constant") found[index] = operands[0];
        else found[index] = OPERATIONS[operation](...operands.map(value));
      }
      return found[index];
    };
    return value;
  };
  const named = (prefix, numbers) => Object.fromEntries(Object.entries(numbers).map(([name, number]) => [`${prefix}.${name}`, number]));

  // Phases with their operators, and the figures of the whole, of one evaluated program; what has no calls is not there.
  const run = (program, given) => {
    const value = evaluator(given);
    const row = ([name, ...nodes]) => {
      const figures = Object.fromEntries(nodes.map((node, index) => [data.columns[index], value(node)]));
      const [bound] = PARTS.reduce((most, part) => (figures[part[1]] > figures[most[1]] ? part : most));
      return { name, bound, ...figures, intensity: figures.bytes > 0 ? figures.flops / figures.bytes : 0 };
    };
    const phases = Object.entries(program.phases).map(([phase, rows]) => [phase, rows.map(row).filter((one) => one.calls > 0)]);
    const figures = Object.entries(program.figures).map(([name, node]) => [name, value(node)]);
    return { phases: Object.fromEntries(phases), figures: Object.fromEntries(figures) };
  };

  const ceilingsOf = (asked) => {
    const device = data.devices[asked.hardware];
    const row = data.bits.weight.indexOf(Number(asked.weight)) * data.bits.activation.length;
    return device.ceilings[device.at[row + data.bits.activation.indexOf(Number(asked.activation))]];
  };

  // Everything about a selection. A device without a rate for such operands has a sentence in place of its ceilings.
  const answer = (asked) => {
    const ceilings = ceilingsOf(asked);
    if (typeof ceilings === "string") return { problem: ceilings };
    const model = data.models[asked.model];
    const method = model.methods[asked.method];
    const device = data.devices[asked.hardware];
    const given = {};
    for (const name of ["batch", "tokens", "weight", "kv", "activation", "accepted", "price"]) given[name] = Number(asked[name]);
    given.tensor = Number(asked.devices);
    given.memory_gb = device.memory_gb;
    given.tdp_w = device.tdp_w;
    data.ceilings.forEach((name, index) => { given[name] = ceilings[index + 1] ?? Infinity; });
    const value = evaluator(given);
    const cost = named("method", Object.fromEntries(data.cost.map((name, index) => [name, value(method.cost[index])])));
    const drafts = cost["method.drafted"] > 0;
    Object.assign(given, cost, named("model", model.dimensions), { drafting_s: 0 });
    if (!drafts) given.accepted = 1; // the control is hidden then
    let drafted = { phases: {} };
    if (method.draft) {
      const { program, dimensions, steps, weight_bits: bits, row_bytes: row } = method.draft;
      const packed = { "method.weight_bits": bits ?? given.weight, "method.row_bytes": row };
      drafted = run(data.programs[program], { ...given, ...named("model", dimensions), ...packed, steps });
      given.drafting_s = drafted.figures.drafting_s;
    }
    const kind = `${asked.attention}${given.tensor > 1 ? "-several" : ""}`;
    const { phases, figures } = run(data.programs[model.programs[kind]], given);
    if (!drafts) delete phases.verify;
    return { ceilings, phases: { ...phases, ...drafted.phases }, figures, drafts };
  };

  // Controls.
  const controls = [...form.elements].filter((element) => element.name);
  const control = (name) => form.elements.namedItem(name);
  const selection = () => Object.fromEntries(controls.map((one) => [one.name, one.value]));
  const fill = (select, options) => {
    const kept = select.value;
    select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
    if (options.some(([value]) => String(value) === kept)) select.value = kept;
  };
  const PHASES = { prefill: "prefill", decode: "decode step", draft: "draft of a round", verify: "verification of a round" };
  const possible = () => {
    const method = data.models[control("model").value].methods[control("method").value];
    const drafts = data.nodes[method.cost[data.cost.indexOf("drafted")]][1] > 0;
    const ceilings = ceilingsOf(selection());
    const linked = typeof ceilings === "string" || ceilings[1 + data.ceilings.indexOf("link_bytes_per_s")] !== null;
    const degrees = data.models[control("model").value].degrees.filter((degree) => degree === 1 || linked);
    fill(control("devices"), degrees.map((degree) => [degree, String(degree)]));
    const phases = Object.keys(PHASES).filter((phase) => (phase !== "draft" || method.draft) && (phase !== "verify" || drafts));
    fill(control("phase"), phases.map((phase) => [phase, PHASES[phase]]));
    control("accepted").closest("label").hidden = !drafts;
  };
  // What a link leaves out, or names wrongly, is as at the beginning.
  const choose = (wanted) => {
    if (wanted !== data.selected) choose(data.selected);
    for (const dependent of [false, true]) {
      for (const [name, value] of Object.entries(wanted)) {
        const one = control(name);
        if (!one || ["phase", "devices"].includes(name) !== dependent) continue;
        if (one.tagName !== "SELECT" || [...one.options].some((option) => option.value === String(value))) one.value = value;
      }
      possible();
    }
  };

  // Figures in words.
  const short = new Intl.NumberFormat("en", { maximumSignificantDigits: 3 });
  const number = (value) => (Number.isFinite(value) ? short.format(value) : "–");
  const element = (tag, content, attributes = {}) => {
    const made = document.createElement(tag);
    made.append(...[content].flat());
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    return made;
  };
  const cell = (value, content = number(value)) => element("td", content, { class: "figure", "data-order": Number.isFinite(value) ? value : "" });

  const showTable = (rows) => {
    const total = (name) => rows.reduce((sum, row) => sum + row[name], 0);
    const all = total("seconds");
    const cells = (row) => [
      cell(row.calls), cell(row.flops, number(row.flops / 1e9)),
      ...["weight_bytes", "activation_bytes", "kv_bytes", "link_bytes"].map((name) => cell(row[name], number(row[name] / 1e6))),
    ];
    byId("rows").replaceChildren(...rows.map((row) => element("tr", [
      element("th", row.name, { scope: "row" }), ...cells(row), cell(row.intensity), element("td", row.bound),
      cell(row.seconds, number(1e3 * row.seconds)),
      cell(row.seconds / all, [element("meter", [], { value: row.seconds / all, "aria-hidden": "true" }), ` ${(100 * row.seconds / all).toFixed(1)} %`]),
    ])));
    const sums = Object.fromEntries(["calls", "flops", "weight_bytes", "activation_bytes", "kv_bytes", "link_bytes"].map((name) => [name, total(name)]));
    const bytes = total("bytes");
    byId("total").replaceChildren(
      element("th", "all", { scope: "row" }), ...cells(sums), cell(sums.flops / bytes), element("td", ""),
      cell(all, number(1e3 * all)), cell(1, "100 %"),
    );
    page.arrange(byId("table"));
    return all;
  };

  const showFigures = ({ figures, drafts }, dense, device) => {
    const memory = device.memory_gb;
    const room = memory === null ? "the device's memory is not known" : `of ${number(memory)} GB: ${figures.fits ? "fits" : "does not fit"}`;
    const shown = [
      ["tokens_per_s", "Tokens per second, at most", number(figures.tokens_per_s), `${number(figures.tokens_per_s / dense.tokens_per_s)} × dense decoding`],
      ["step_ms", drafts ? "A round, at least" : "A decode step, at least", `${number(figures.step_ms)} ms`, drafts ? "draft and verification" : "one token of every sequence"],
      ["prefill_ms", "First token, at least", `${number(figures.prefill_ms)} ms`, "the whole prompt"],
      ["memory_gb", "Memory per device", `${number(figures.memory_gb)} GB`, room, figures.fits || memory === null ? "" : "worse"],
      ["weights_gb", "Weights", `${number(figures.weights_gb)} GB`, ""],
      ["kv_cache_gb", "Keys and values", `${number(figures.kv_cache_gb)} GB`, ""],
      drafts && ["break_even_tokens_per_step", "A round pays from", `${number(figures.break_even_tokens_per_step)} tokens`, "given per round"],
      ["joules_per_token_at_rated_power", "Energy per token, at most", `${number(figures.joules_per_token_at_rated_power)} J`, "at rated power all the time"],
      control("price").value && ["price_per_million_in", "A million tokens read", number(figures.price_per_million_in), "in the currency of the price"],
      control("price").value && ["price_per_million_out", "A million tokens written", number(figures.price_per_million_out), "in the currency of the price"],
    ];
    byId("figures").replaceChildren(...shown.filter((one) => one && Number.isFinite(figures[one[0]])).map(([name, label, content, detail, tone]) =>
      element("div", [
        element("dt", label),
        element("dd", [content, element("small", detail, { class: tone ?? "" })], { "data-figure": name, "data-value": figures[name] }),
      ])));
  };

  // The plot: the roof, and one point an operator that computes; sizes are shares of the time.
  const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const layout = () => ({
    template: "none", height: 460, margin: { l: 64, r: 16, t: 16, b: 48 }, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { family: "system-ui, sans-serif", size: 12 }, hoverlabel: { align: "left" },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0, xanchor: "left" },
    xaxis: { title: { text: "arithmetic intensity, FLOP per byte" }, type: "log", tickformat: "~g", dtick: 1 },
    yaxis: { title: { text: "TFLOP/s" }, type: "log", tickformat: "~g", dtick: 1 },
  });
  const traces = (rows, [name, peak, bandwidth], all) => {
    const computing = rows.filter((row) => row.flops > 0 && row.bytes > 0);
    const ridge = peak / bandwidth;
    const places = [ridge, ...computing.map((row) => row.intensity)];
    const roof = [Math.min(...places) / 4, ridge, Math.max(...places) * 4];
    const line = {
      x: roof, y: roof.map((x) => Math.min(peak, x * bandwidth) / 1e12), mode: "lines+text", name: escaped(name),
      text: ["", `ridge ${number(ridge)}`, ""], textposition: "top left", line: { color: "#7c8798", width: 2 }, hoverinfo: "skip",
    };
    const points = Object.entries(BOUNDS).map(([bound, [color, symbol]]) => [bound, color, symbol, computing.filter((row) => row.bound === bound)]);
    return [line, ...points.filter(([, , , own]) => own.length).map(([bound, color, symbol, own]) => ({
      x: own.map((row) => row.intensity), y: own.map((row) => row.flops / row.seconds / 1e12), mode: "markers+text", name: `${bound} bound`,
      marker: { color, symbol, size: own.map((row) => 9 + 24 * Math.sqrt(row.seconds / all)), opacity: 0.85 },
      text: own.map((row) => (row.seconds / all >= LABELLED ? row.name : "")), textposition: "bottom center", cliponaxis: false,
      hovertext: own.map((row) => [
        `<b>${row.name}</b>, ${bound} bound`, `${number(row.flops / 1e9)} GFLOP, ${number(row.bytes / 1e6)} MB`,
        `${number(row.intensity)} FLOP/byte, ${number(row.flops / row.seconds / 1e12)} TFLOP/s`,
        `${number(1e3 * row.seconds)} ms, ${(100 * row.seconds / all).toFixed(1)} % of the time`,
      ].join("<br>")),
      hovertemplate: "%{hovertext}<extra></extra>",
    }))];
  };
  let waiting = 0;
  const showPlot = (rows, ceilings, all) => {
    cancelAnimationFrame(waiting);
    waiting = requestAnimationFrame(() => {
      const bare = layout();
      page.plotly().react(byId("plot"), traces(rows, ceilings, all), bare, page.config)
        .then((plot) => Plotly.relayout(plot, page.colours(bare)));
    });
  };

  const say = (sentence, problem = false) => {
    byId("status").textContent = sentence;
    byId("status").classList.toggle("worse", problem);
    byId("answer").hidden = problem;
  };
  const show = () => {
    possible();
    const wrong = controls.find((one) => !one.checkValidity());
    if (wrong) return say(`${wrong.closest("label").firstChild.textContent.trim()}: ${wrong.validationMessage}`, true);
    const asked = selection();
    byId("link").href = MARK + new URLSearchParams(asked);
    const found = answer(asked);
    if (found.problem) return say(found.problem, true);
    const rows = found.phases[asked.phase];
    const all = showTable(rows);
    showFigures(found, answer({ ...asked, method: "dense" }).figures, data.devices[asked.hardware]);
    showPlot(rows, found.ceilings, all);
    return say(`${PHASES[asked.phase]} of ${asked.model} under ${asked.method} on ${found.ceilings[0]}: at least ${number(1e3 * all)} ms`);
  };

  const restore = () => {
    if (!location.hash.startsWith(MARK)) return false;
    choose(Object.fromEntries(new URLSearchParams(location.hash.slice(MARK.length))));
    show();
    byId("form").closest("section").scrollIntoView();
    return true;
  };
  const start = () => {
    if (data) return;
    data = JSON.parse(page.text("explorer-data"));
    for (const name of ["model", "method"]) fill(control(name), data.choices[name].map((one) => [one, one]));
    fill(control("hardware"), Object.entries(data.devices).map(([name, device]) => [name, device.title]));
    for (const [name, widths] of Object.entries(data.bits)) fill(control(name), widths.map((width) => [width, String(width)]));
    choose(data.selected);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("input", () => {
      show();
      history.replaceState(null, "", byId("link").href);
    });
    addEventListener("hashchange", restore);
    page.dark.addEventListener("change", () => page.plotly().relayout(byId("plot"), page.colours(layout())));
    if (!restore()) show();
  };
  // The data are read when the explorer comes near the window, before printing, or when a link asks for it.
  new IntersectionObserver((entries) => entries.some((entry) => entry.isIntersecting) && start(), { rootMargin: "600px" }).observe(form);
  addEventListener("beforeprint", start);
  addEventListener("hashchange", () => location.hash.startsWith(MARK) && start());
  if (location.hash.startsWith(MARK)) start();
})();
