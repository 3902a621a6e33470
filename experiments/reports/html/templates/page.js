"use strict";
(() => {
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const made = (name, attributes, text) => {
    const it = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) it.setAttribute(key, value);
    if (text !== undefined) it.textContent = text;
    return it;
  };

  // light or dark: as the system has it, until the reader says otherwise
  const theme = document.getElementById("theme"), root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => root.classList.contains("dark") || (!root.classList.contains("light") && system.matches);
  const label = () => { theme.textContent = dark() ? "Light" : "Dark"; theme.setAttribute("aria-label", `Show in ${dark() ? "light" : "dark"} colours`); };
  theme.addEventListener("click", () => { const next = dark() ? "light" : "dark"; root.classList.remove("light", "dark"); root.classList.add(next); label(); });
  system.addEventListener("change", label);
  label();
  theme.hidden = false;

  // tables: a click on a title sorts, again the other way, a third time as it was; what has no number goes last
  const value = (row, column) => {
    const cell = row.cells[column], bar = cell.querySelector("svg"), text = bar ? bar.getAttribute("aria-label") : cell.textContent;
    const given = cell.dataset.v ?? (/^[+-]?\d[\d,]*\.?\d*(e[+-]?\d+)?$/.test(text) ? text.replaceAll(",", "") : "");
    return given === "" ? text : Number(given);
  };
  const compare = (one, other) => {
    if (typeof one === "number" && typeof other === "number") return one - other;
    if (typeof one === "number") return -Infinity;
    if (typeof other === "number") return Infinity;
    return one.localeCompare(other, "en", {numeric: true});
  };
  for (const table of all(".table table")) {
    const body = table.tBodies[0], rows = [...body.rows], heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = made("button", {type: "button"}, head.textContent);
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const next = {ascending: "descending", descending: "none"}[head.getAttribute("aria-sort")] ?? "ascending";
        heads.forEach((it) => it.removeAttribute("aria-sort"));
        let sorted = rows;
        if (next !== "none") {
          head.setAttribute("aria-sort", next);
          sorted = rows.map((row) => [value(row, column), row]).sort(([one], [other]) => {
            const found = compare(one, other);
            return next === "ascending" || !Number.isFinite(found) ? found : -found;
          }).map(([, row]) => row);
        }
        body.append(...sorted);
      });
    });
    const box = table.closest(".table"), field = box.querySelector("input"), count = box.querySelector(".count");
    if (!field) continue;
    field.parentElement.hidden = false;
    let texts;
    field.addEventListener("input", () => {
      texts ??= rows.map((row) => [...row.cells].map((cell) => cell.querySelector("svg")?.getAttribute("aria-label") ?? cell.textContent).join(" ").toLowerCase());
      const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
      rows.forEach((row, i) => { row.hidden = !words.every((word) => texts[i].includes(word)); });
      count.textContent = words.length ? `${rows.filter((row) => !row.hidden).length} of ${rows.length} rows` : "";
    });
  }

  // charts: the nearest mark is told; arrow keys go from mark to mark and from series to series
  for (const figure of all("figure")) {
    const svg = figure.querySelector("svg.chart"), told = figure.querySelector(".told");
    const groups = all("g.s", svg), marks = groups.map((group) => all(".m", group));
    let at = null;
    const place = (mark) => [Number(mark.dataset.x), Number(mark.dataset.y)];
    const show = (mark) => {
      at?.classList.remove("at");
      at = mark;
      at?.classList.add("at");
      told.textContent = at ? at.querySelector("title").textContent : "";
    };
    const shown = () => marks.filter((_, i) => !groups[i].hasAttribute("display"));
    const nearest = (found, x, y, across = 1) => found.reduce((best, mark) => {
      const [mx, my] = place(mark), far = across * (mx - x) ** 2 + (my - y) ** 2;
      return far < best[0] ? [far, mark] : best;
    }, [Infinity, null]);
    svg.addEventListener("pointermove", (event) => {
      const turned = svg.getScreenCTM();
      if (!turned) return;
      const point = new DOMPoint(event.clientX, event.clientY).matrixTransform(turned.inverse());
      const [far, mark] = nearest(shown().flat(), point.x, point.y);
      show(far < 900 ? mark : null);
    });
    svg.addEventListener("pointerleave", () => { if (document.activeElement !== svg) show(null); });
    svg.setAttribute("tabindex", "0");
    svg.setAttribute("aria-roledescription", "chart");
    const help = "Arrow keys go from mark to mark and from series to series.";
    svg.setAttribute("aria-label", `${svg.getAttribute("aria-label")} ${help}`);
    svg.addEventListener("keydown", (event) => {
      const rows = shown().filter((row) => row.length);
      const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
      if (event.key === "Escape") return show(null);
      if (!step || !rows.length) return;
      event.preventDefault();
      const row = rows.findIndex((it) => it.includes(at));
      if (row < 0) return show(rows[0][0]);
      if (step[1]) return show(rows[row][Math.min(rows[row].length - 1, Math.max(0, rows[row].indexOf(at) + step[1]))]);
      const [x, y] = place(at);
      show(nearest(rows[(row + step[0] + rows.length) % rows.length], x, y, 1e6)[1]);
    });
    all(".key", figure).forEach((key, i) => {
      if (groups.length < 2) return;
      const button = made("button", {type: "button", class: "key", "aria-pressed": "true"});
      button.append(...key.childNodes);
      key.replaceWith(button);
      button.addEventListener("click", () => {
        const hide = button.getAttribute("aria-pressed") === "true";
        button.setAttribute("aria-pressed", String(!hide));
        hide ? groups[i].setAttribute("display", "none") : groups[i].removeAttribute("display");
        if (hide && marks[i].includes(at)) show(null);
      });
    });
  }

  // films: one frame at a time, by hand or one after the other; a film that runs stops at its end, and when it is left
  for (const film of all(".film")) {
    const controls = film.querySelector(".controls"), frames = all(".frames > li", film);
    if (!controls) continue;
    const [button, slider] = controls.children;
    let timer = 0;
    const show = () => {
      const at = Number(slider.value) - 1;
      frames.forEach((frame, i) => { frame.hidden = i !== at; });
      slider.setAttribute("aria-valuetext", frames[at].querySelector("p").textContent);
    };
    const stop = () => { clearInterval(timer); timer = 0; button.textContent = "Play"; };
    const next = () => {
      slider.value = String(Number(slider.value) + 1);
      show();
      if (slider.value === slider.max || !film.checkVisibility()) stop();
    };
    slider.addEventListener("input", () => { stop(); show(); });
    button.addEventListener("click", () => {
      if (timer) return stop();
      if (slider.value === slider.max) { slider.value = "1"; show(); }
      timer = setInterval(next, 700);
      button.textContent = "Pause";
    });
    // as wide and high as the largest frame, so that nothing moves but the answer
    film.closest("details")?.addEventListener("toggle", () => {
      if (film.style.minHeight || !film.checkVisibility()) return;
      frames.forEach((frame) => { frame.hidden = false; });
      const boxes = frames.map((frame) => frame.getBoundingClientRect());
      frames[0].parentElement.style.minWidth = `min(100%, ${Math.ceil(Math.max(...boxes.map((it) => it.width)))}px)`;
      show();
    });
    controls.hidden = false;
    show();
  }

  // what is to be copied; where the clipboard is shut, as in some pages that are no https, it is marked instead
  for (const button of all(".copy")) {
    const text = button.closest(".code").querySelector("pre");
    button.hidden = false;
    button.addEventListener("click", async () => {
      let done = true;
      try {
        await navigator.clipboard.writeText(text.textContent);
      } catch {
        getSelection().selectAllChildren(text);
        done = document.execCommand("copy");
      }
      button.textContent = done ? "Copied" : "Marked: copy it";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
  }
})();
