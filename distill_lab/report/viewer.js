"use strict";
// Search, filters and pages of the test items in a report. All text is set as text, never as HTML.
(() => {
  const block = (id) => document.getElementById(id);
  const index = JSON.parse(block("items-index").textContent);
  const total = index.ids.length;
  const REASONS = { length: "cut at the limit", missing: "no answer", error: "failed" };
  const MAX_CELLS = 4e6; // of the table that finds the words two answers share
  const SLICE_MS = 24; // a search gives way to the person after this time

  const chunks = new Map();
  function item(place) {
    const number = Math.floor(place / index.chunk);
    if (!chunks.has(number)) chunks.set(number, JSON.parse(block("items-" + number).textContent));
    return chunks.get(number)[place % index.chunk];
  }

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  // Controls

  const controls = document.querySelector("#items .controls");
  function control(label, element) {
    const around = make("label", "control");
    around.append(make("span", "small muted", label), element);
    controls.append(around);
    return element;
  }
  function choice(label, options) {
    const select = make("select");
    for (const [value, text] of options) {
      const option = make("option", "", text);
      option.value = value;
      select.append(option);
    }
    return control(label, select);
  }
  const number = (value) => value.toLocaleString("en-US");

  const search = make("input");
  search.type = "search";
  search.autocomplete = "off";
  search.spellcheck = false;
  control("Search prompts and answers", search);
  const kind = choice("Outcome", [
    [0, `All (${number(total)})`],
    ...index.titles.map(([bit, title, count]) => [bit, `${title} (${number(count)})`]),
  ]);
  const filters = index.fields.map(([name, values]) =>
    choice(name[0].toUpperCase() + name.slice(1), [[-1, "All"], ...values.map((value, place) => [place, value])]),
  );
  const perPage = choice("Items per page", [10, 20, 50, 100].map((value) => [value, String(value)]));
  perPage.value = "20";
  const mark = make("input");
  mark.type = "checkbox";
  if (index.models.some(([name]) => name === "teacher")) {
    const around = make("label", "check");
    around.append(mark, make("span", "", "Mark words that only the teacher or only the student has"));
    controls.append(around);
  }

  // Which items

  let chosen = [];
  let page = 0;
  let searching = 0;
  const status = block("items-status");
  const list = block("items-list");
  const pages = document.querySelector("#items .pages");

  function byIndex() {
    const bit = Number(kind.value);
    const wanted = filters.map((filter) => Number(filter.value));
    const found = [];
    for (let place = 0; place < total; place++) {
      if (bit && !(index.kinds[place] & bit)) continue;
      if (wanted.some((value, of) => value >= 0 && index.fields[of][2][place] !== value)) continue;
      found.push(place);
    }
    return found;
  }

  function holds(place, text) {
    const [prompt, gold, answers] = item(place);
    const has = (value) => value !== null && value.toLowerCase().includes(text);
    if (has(index.ids[place]) || has(prompt) || has(gold)) return true;
    return answers.some((answer) => answer !== null && (has(answer[0]) || has(answer[1])));
  }

  function update() {
    const mine = ++searching;
    const text = search.value.trim().toLowerCase();
    const found = byIndex();
    page = 0;
    if (!text) {
      chosen = found;
      show();
      return;
    }
    const matching = [];
    let place = 0;
    (function slice() {
      if (mine !== searching) return;
      const until = performance.now() + SLICE_MS;
      while (place < found.length && performance.now() < until) {
        if (holds(found[place], text)) matching.push(found[place]);
        place++;
      }
      if (place < found.length) {
        status.textContent = `Searching, ${number(place)} of ${number(found.length)} …`;
        setTimeout(slice, 0);
        return;
      }
      chosen = matching;
      show();
    })();
  }

  // What they look like

  function badge(answer) {
    const score = answer[2];
    if (index.similarity || (score !== 0 && score !== 1)) return make("span", "badge", score.toFixed(2));
    return score === 1 ? make("span", "badge good", "✓ right") : make("span", "badge bad", "✗ wrong");
  }

  function text(className, value, marked) {
    const element = make("p", "text-block " + className);
    element.dir = "auto";
    if (!value) element.append(make("span", "muted", "(empty)"));
    else if (marked) element.append(...marked);
    else element.textContent = value;
    return element;
  }

  function folded(title, value) {
    const details = make("details");
    details.append(make("summary", "", title), text("", value));
    return details;
  }

  function article(place) {
    const [prompt, gold, answers] = item(place);
    const element = make("article", "card example");
    const top = make("div", "top");
    const titles = index.titles.filter(([bit]) => index.kinds[place] & bit);
    const left = make("span");
    for (const [, title] of titles) left.append(make("span", "badge", title.split(":")[0]), " ");
    const heading = make("h3", "small muted", index.ids[place]);
    top.append(left, heading);
    element.append(top, text("question", prompt));
    if (gold !== null) {
      const line = make("p", "gold");
      const value = make("bdi", "", gold);
      line.append(make("span", "muted", index.similarity ? "Reference: " : "Gold answer: "), value);
      element.append(line);
    }
    const marks = mark.checked ? differences(answers) : {};
    const around = make("div", "answers");
    answers.forEach((answer, of) => {
      if (answer === null) return;
      const [name, label] = index.models[of];
      const part = make("div", "answer " + name);
      const line = make("div", "top");
      line.append(make("h4", "", label), badge(answer));
      part.append(line, text("", answer[0], marks[name]));
      if (answer[1] !== null) part.append(folded("Thinking", answer[1]));
      const how = REASONS[answer[4]] ? ", " + REASONS[answer[4]] : "";
      part.append(make("p", "small muted after", `${number(answer[3])} tokens${how}`));
      around.append(part);
    });
    element.append(around);
    return element;
  }

  function button(label, to, off) {
    const element = make("button", "", label);
    element.type = "button";
    element.disabled = off;
    element.addEventListener("click", () => {
      page = to;
      show();
      block("items-title").scrollIntoView();
      // The button that was pressed is a new one now.
      const again = [...pages.children].find((each) => each.textContent === label && !each.disabled);
      (again || pages.querySelector("button:not(:disabled)") || search).focus({ preventScroll: true });
    });
    return element;
  }

  function show() {
    const size = Number(perPage.value);
    const last = Math.max(0, Math.ceil(chosen.length / size) - 1);
    page = Math.min(page, last);
    const shown = chosen.slice(page * size, (page + 1) * size);
    list.replaceChildren(...shown.map(article));
    status.textContent = chosen.length
      ? `Items ${number(page * size + 1)} to ${number(page * size + shown.length)} of ${number(chosen.length)}` +
        (chosen.length < total ? `, from ${number(total)}` : "")
      : "No item matches.";
    pages.replaceChildren(
      button("First", 0, page === 0),
      button("Previous", page - 1, page === 0),
      make("span", "small", `Page ${number(page + 1)} of ${number(last + 1)}`),
      button("Next", page + 1, page === last),
      button("Last", last, page === last),
    );
  }

  // The chosen items as a file, for a failure analysis elsewhere

  function save() {
    const lines = chosen.map((place) => {
      const [prompt, gold, answers] = item(place);
      const row = { id: index.ids[place], prompt, gold_answer: gold };
      answers.forEach((answer, of) => {
        if (answer === null) return;
        const [output, thinking, score, num_tokens, finish_reason] = answer;
        row[index.models[of][0]] = { output, thinking, score, num_tokens, finish_reason };
      });
      return JSON.stringify(row) + "\n";
    });
    const link = make("a");
    link.href = URL.createObjectURL(new Blob(lines, { type: "application/jsonl" }));
    link.download = "items.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // Words that only one of two answers has

  function differences(answers) {
    const of = (name) => index.models.findIndex(([model]) => model === name);
    const teacher = answers[of("teacher")];
    const student = answers[of("student")];
    if (!teacher || !student) return {};
    const pieces = [teacher, student].map((answer) => answer[0].match(/\s+|\S+/g) || []);
    // Only words are compared; the spaces between two marked words are marked with them.
    const words = pieces.map((each) => each.flatMap((piece, place) => (piece.trim() ? [place] : [])));
    const found = shared(...words.map((places, of) => places.map((place) => pieces[of][place])));
    if (!found) return {};
    const same = found.map((set, of) => new Set([...set].map((place) => words[of][place])));
    return { teacher: marked(pieces[0], same[0]), student: marked(pieces[1], same[1]) };
  }

  // Places of the longest common subsequence in both; null if the answers are too long, or have no word in common.
  function shared(one, other) {
    let start = 0;
    let ends = [one.length, other.length];
    while (start < Math.min(...ends) && one[start] === other[start]) start++;
    while (Math.min(...ends) > start && one[ends[0] - 1] === other[ends[1] - 1]) ends = [ends[0] - 1, ends[1] - 1];
    const rows = ends[0] - start;
    const columns = ends[1] - start;
    if ((rows + 1) * (columns + 1) > MAX_CELLS) return null;
    const width = columns + 1;
    const length = new Uint16Array((rows + 1) * width);
    for (let a = rows - 1; a >= 0; a--)
      for (let b = columns - 1; b >= 0; b--)
        length[a * width + b] =
          one[start + a] === other[start + b]
            ? length[(a + 1) * width + b + 1] + 1
            : Math.max(length[(a + 1) * width + b], length[a * width + b + 1]);
    const same = [new Set(), new Set()];
    for (let place = 0; place < start; place++) same.forEach((set) => set.add(place));
    for (let place = ends[0]; place < one.length; place++) same[0].add(place);
    for (let place = ends[1]; place < other.length; place++) same[1].add(place);
    for (let a = 0, b = 0; a < rows && b < columns; ) {
      if (one[start + a] === other[start + b]) {
        same[0].add(start + a++);
        same[1].add(start + b++);
      } else if (length[(a + 1) * width + b] >= length[a * width + b + 1]) a++;
      else b++;
    }
    return same[0].size ? same : null;
  }

  function marked(pieces, same) {
    const parts = [];
    let run = "";
    const close = () => {
      if (run) parts.push(make("mark", "", run));
      run = "";
    };
    pieces.forEach((piece, place) => {
      const isSpace = !piece.trim();
      const follows = place + 1 < pieces.length && !same.has(place + 1);
      if ((isSpace && run && follows) || !(isSpace || same.has(place))) run += piece;
      else {
        close();
        parts.push(piece);
      }
    });
    close();
    return parts;
  }

  const saving = make("button", "", "Save the items found (JSONL)");
  saving.type = "button";
  saving.addEventListener("click", save);
  controls.append(saving);
  let waiting = 0;
  search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(update, 200);
  });
  for (const select of [kind, ...filters]) select.addEventListener("change", update);
  for (const each of [perPage, mark]) each.addEventListener("change", show);
  block("items-off").remove();
  block("items").hidden = false;
  update();
})();
