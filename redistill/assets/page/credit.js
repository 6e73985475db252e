// The credit viewer: an episode's tokens coloured by what each term asked for, the likeliest tokens of student and teacher at the
// one that is pointed at or focused, the views that both read, and a slider over training for the same prompt.
(() => {
  const DATA_CREDIT = DATA.credit;
  const place = document.getElementById("credit-viewer");
  if (!place || !DATA_CREDIT.prompts.length) return;
  const make = (tag, attributes = {}, ...children) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  };
  const fixed = (value) => (value === null || value === undefined ? "–" : String(Number(Number(value).toPrecision(3))));
  const state = { prompt: 0, moment: 0, row: 0, quantity: null, token: null };

  // --- what an episode's tokens can be coloured by: {key: {label, values [steps], signed}}
  function quantities(row) {
    const found = {};
    const add = (key, label, values, signed) => { if (values && values.length) found[key] = { label, values, signed }; };
    row.teachers.forEach((teacher, i) => {
      const gap = teacher.logp && teacher.logp.map((value, t) => (value === null || row.logp[t] === null ? null : value - row.logp[t]));
      add(`gap-${i}`, `teacher minus student log-prob (${teacher.name})`, gap, true);
    });
    for (const term of row.terms)
      for (const [name, values] of Object.entries(term.values)) {
        const signed = values.some((value) => value < 0);
        add(`${term.name}:${name}`, `${term.name}: ${name.replace(/_/g, " ")}`, values, signed || name === "advantage");
      }
    add("logp", "student log-prob of the token", row.logp, true);
    add("entropy", "student entropy (nats)", row.entropy, false);
    row.teachers.forEach((teacher, i) => add(`entropy-${i}`, `teacher entropy (${teacher.name}, nats)`, teacher.entropy, false));
    if (row.behaviour_logp) add("moved", "log-prob now minus when sampled", row.logp.map((value, t) => value - row.behaviour_logp[t]), true);
    return found;
  }

  const prompt = () => DATA_CREDIT.prompts[state.prompt];
  const moments = () => prompt().moments;
  const rows = () => moments()[state.moment].rows;
  const row = () => rows()[Math.min(state.row, rows().length - 1)];

  // One scale for a quantity over all moments of a prompt, so that colours can be compared from step to step.
  function scale(key) {
    const sizes = moments().flatMap((moment) => moment.rows).flatMap((each) => (quantities(each)[key] || { values: [] }).values)
      .filter((value) => value !== null).map(Math.abs).sort((a, b) => a - b);
    return sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * 0.97))] || sizes[sizes.length - 1] || 1 : 1;
  }

  const tintOf = (value, signed) => colour(signed && value < 0 ? "c1" : "c0");
  const wash = (value, signed, top) => (value === null || value === undefined ? "" : shade(tintOf(value, signed), (0.75 * Math.sqrt(Math.min(1, Math.abs(value) / top))).toFixed(3)));

  // --- the parts of the viewer
  const select = (label, id) => {
    const box = make("select", { id });
    return [make("label", { htmlFor: id, textContent: label }), box];
  };
  const [promptLabel, promptBox] = select("Prompt", "credit-prompt");
  const [rowLabel, rowBox] = select("Episode", "credit-row");
  const [byLabel, byBox] = select("Colour by", "credit-by");
  const slider = make("input", { type: "range", id: "credit-step", min: 0, step: 1 });
  const sliderSaid = make("output", { htmlFor: "credit-step" });
  const tokens = make("div", { className: "tokens", id: "credit-tokens" });
  tokens.setAttribute("role", "group");
  tokens.setAttribute("aria-label", "Tokens of the response. Left and right arrows move over them.");
  const legend = make("div", { className: "legend" });
  const verdict = make("div", { className: "verdict" });
  const detail = make("div", { className: "detail", id: "credit-detail" });
  detail.setAttribute("aria-live", "polite");
  const views = make("div", { className: "views", id: "credit-views" });
  const labelled = (label, box) => make("div", { className: "field" }, label, box);
  place.append(
    make("div", { className: "controls" }, labelled(promptLabel, promptBox), labelled(rowLabel, rowBox), labelled(byLabel, byBox)),
    make("div", { className: "slide" }, make("label", { htmlFor: "credit-step", textContent: "Training" }), slider, sliderSaid),
    verdict, make("div", { className: "stage" }, make("div", {}, tokens, legend, views), detail),
  );

  function showControls() {
    promptBox.replaceChildren(...DATA_CREDIT.prompts.map((each, i) => make("option", { value: i, textContent: each.name })));
    promptBox.value = state.prompt;
    slider.max = moments().length - 1;
    slider.value = state.moment;
    slider.disabled = moments().length < 2;
    const moment = moments()[state.moment];
    const total = DATA_CREDIT.steps;
    sliderSaid.textContent = `after ${moment.step}${total ? " of " + total : ""} updates` + (DATA_CREDIT.stages > 1 ? ` (${moment.stage})` : "");
    slider.setAttribute("aria-valuetext", sliderSaid.textContent);
    rowBox.replaceChildren(...rows().map((each, i) => make("option", { value: i, textContent: rowName(each, i) })));
    rowBox.value = Math.min(state.row, rows().length - 1);
    const known = quantities(row());
    if (!(state.quantity in known)) state.quantity = preferred(known);
    byBox.replaceChildren(...Object.entries(known).map(([key, each]) => make("option", { value: key, textContent: each.label })));
    byBox.value = state.quantity;
  }

  const rowName = (each, i) => `${i + 1}: reward ${each.reward === null ? "–" : fixed(each.reward)}, trained as ${each.trained_under}` + (each.player === "student" ? "" : `, ${each.player}`);

  function preferred(known) {
    const keys = Object.keys(known);
    const alive = (key) => known[key].values.some((value) => value);
    return keys.find((key) => key.startsWith("gap-") && alive(key)) || keys.find((key) => key.endsWith(":advantage") && alive(key)) || "logp";
  }

  function showVerdict() {
    const it = row();
    const chips = [
      ["reward", it.reward === null ? "not judged" : fixed(it.reward)], ["ended by", it.finish], ["sampled as", it.sampled_under],
      ["trained as", it.trained_under], ...(it.reference ? [["reference", it.reference]] : []),
    ];
    verdict.replaceChildren(...chips.map(([name, value]) => make("span", { className: "chip" }, make("b", { textContent: name + " " }), String(value))));
    const covered = it.terms.some((term) => !term.values.mask || term.values.mask.some((value) => value));
    if (!covered) verdict.append(make("p", { className: "soft", textContent: "No term covers this episode: it teaches nothing in this step." }));
    if (it.feedback) verdict.append(make("p", { className: "feedback" }, make("b", { textContent: "Feedback " }), it.feedback));
  }

  function showTokens() {
    const it = row();
    const shown = quantities(it)[state.quantity];
    const top = scale(state.quantity);
    const term = it.terms.find((each) => state.quantity.startsWith(each.name + ":"));
    const mask = term && term.values.mask;
    const stepAt = new Map(it.own.map((at, step) => [at, step]));
    tokens.replaceChildren(...it.tokens.map((text, at) => {
      const step = stepAt.get(at);
      const words = text.replace(/\n/g, "↵\n").replace(/\t/g, "⇥");
      if (step === undefined) return make("span", { className: "given", textContent: words });
      const value = shown ? shown.values[step] : null;
      const made = make("button", { type: "button", className: "tok", textContent: words || "∅", tabIndex: -1 });
      made.dataset.step = step;
      if (mask && !mask[step]) made.classList.add("masked");
      made.style.background = wash(value, shown && shown.signed, top);
      made.setAttribute("aria-label", `token ${step + 1}, ${text.trim() || "space"}, ${fixed(value)}`);
      return made;
    }));
    if (it.left_out) tokens.append(make("span", { className: "given", textContent: ` … ${it.left_out} more tokens` }));
    if (!it.own.length) tokens.append(make("span", { className: "given", textContent: "(an empty response)" }));
    showLegend(shown, top, mask);
    if (state.token === null) state.token = strongest(shown);
    point(Math.min(state.token, it.own.length - 1));
  }

  const strongest = (shown) => (shown ? shown.values.reduce((best, value, i) => (Math.abs(value) > Math.abs(shown.values[best]) ? i : best), 0) : 0);

  function showLegend(shown, top, mask) {
    legend.replaceChildren();
    if (!shown) return;
    const ends = shown.signed ? [-top, -top / 4, 0, top / 4, top] : [0, top / 4, top];
    for (const value of ends) {
      const cell = make("span", { textContent: fixed(value) });
      cell.style.background = wash(value, shown.signed, top);
      legend.append(cell);
    }
    legend.append(make("em", { textContent: shown.label }));
    if (mask) legend.append(make("em", { className: "masked", textContent: "not covered by this term" }));
  }

  function likeliest(title, list, taken) {
    const box = make("div", { className: "likely" }, make("h4", { textContent: title }));
    if (!list) return make("div", { className: "likely" }, make("h4", { textContent: title }), make("p", { className: "soft", textContent: "nothing here" }));
    for (const [text, p] of list) {
      const bar = make("i");
      bar.style.width = `${Math.max(1, p * 100)}%`;
      const name = make("code", { textContent: text.replace(/\n/g, "↵").replace(/ /g, "␣") || "∅" });
      box.append(make("div", { className: text === taken ? "alt taken" : "alt" }, bar, name, make("span", { textContent: p >= 0.0995 ? `${(p * 100).toFixed(0)}%` : p >= 0.001 ? `${(p * 100).toFixed(1)}%` : "<0.1%" })));
    }
    return box;
  }

  function point(step) {
    const it = row();
    state.token = Math.max(0, step);
    for (const each of tokens.querySelectorAll(".tok")) {
      const on = Number(each.dataset.step) === state.token;
      each.classList.toggle("on", on);
      each.tabIndex = on ? 0 : -1;
    }
    if (step < 0) { detail.replaceChildren(make("p", { className: "soft", textContent: "No token to look at." })); return; }
    const text = it.tokens[it.own[step]];
    const facts = Object.entries(quantities(it)).map(([key, each]) =>
      make("tr", { className: key === state.quantity ? "on" : "" }, make("td", { textContent: each.label }), make("td", { className: "n", textContent: fixed(each.values[step]) })));
    detail.replaceChildren(
      make("h4", { className: "which" }, `token ${step + 1} of ${it.own.length}: `, make("code", { textContent: text.replace(/\n/g, "↵").replace(/ /g, "␣") })),
      likeliest("Student", it.likeliest[step], text),
      ...it.teachers.map((teacher) => likeliest(`Teacher ${teacher.name}`, teacher.likeliest[step], text)),
      make("table", {}, make("tbody", {}, ...facts)),
    );
  }

  // What one text has beyond the other, marked: the part between their common beginning and their common end.
  function marked(text, other) {
    let low = 0, back = 0;
    while (low < text.length && text[low] === other[low]) low++;
    while (back < text.length - low && back < other.length - low && text[text.length - 1 - back] === other[other.length - 1 - back]) back++;
    const middle = text.slice(low, text.length - back);
    return [text.slice(0, low), ...(middle ? [make("mark", { textContent: middle })] : []), text.slice(text.length - back)];
  }

  function showViews() {
    const it = row();
    const view = (title, ...text) => {
      const pre = make("pre", { tabIndex: 0 }, ...text);
      pre.setAttribute("aria-label", title);
      return make("div", {}, make("h4", { textContent: title }), pre);
    };
    views.replaceChildren(view("The student reads", it.reads), ...it.teachers.map((teacher) => view(`The teacher ${teacher.name} reads`, ...marked(teacher.reads, it.reads))));
    if (!it.teachers.length) views.append(make("p", { className: "soft", textContent: "No teacher reads this episode." }));
  }

  function show() { showControls(); showVerdict(); showTokens(); showViews(); }

  promptBox.addEventListener("change", () => { Object.assign(state, { prompt: Number(promptBox.value), moment: 0, row: 0, token: null }); state.moment = moments().length - 1; show(); });
  rowBox.addEventListener("change", () => { Object.assign(state, { row: Number(rowBox.value), token: null }); show(); });
  byBox.addEventListener("change", () => { state.quantity = byBox.value; showTokens(); });
  slider.addEventListener("input", () => { state.moment = Number(slider.value); show(); });
  const stepOf = (event) => { const token = event.target.closest(".tok"); return token ? Number(token.dataset.step) : null; };
  for (const kind of ["mouseover", "focusin", "click"])
    tokens.addEventListener(kind, (event) => { const step = stepOf(event); if (step !== null) point(step); });
  tokens.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    point(Math.min(row().own.length - 1, Math.max(0, state.token + move)));
    tokens.querySelector(".tok.on")?.focus();
  });
  document.addEventListener("recoloured", showTokens);
  state.moment = moments().length - 1;
  show();
})();
