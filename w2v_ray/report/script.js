"use strict";
// Chooses the theme, and finds rows of the transcript browser. Without it the page shows all of its contents.
(() => {
  const root = document.documentElement;
  const remembered = {
    get: () => { try { return localStorage.getItem("w2v-ray-theme"); } catch { return null; } },
    set: (theme) => { try { localStorage.setItem("w2v-ray-theme", theme); } catch { /* a browser that keeps nothing */ } },
  };
  const buttons = [...document.querySelectorAll("[data-theme-choice]")];
  const choose = (theme) => {
    if (theme === "auto") delete root.dataset.theme; else root.dataset.theme = theme;
    for (const button of buttons) button.setAttribute("aria-pressed", String(button.dataset.themeChoice === theme));
  };
  for (const button of buttons) {
    button.addEventListener("click", () => {
      choose(button.dataset.themeChoice);
      remembered.set(button.dataset.themeChoice);
    });
  }
  const theme = remembered.get();
  choose(theme === "light" || theme === "dark" ? theme : "auto");
  for (const hidden of document.querySelectorAll("[data-needs-script]")) hidden.hidden = false;

  const list = document.getElementById("rows");
  if (!list) return;
  const search = document.getElementById("search");
  const order = document.getElementById("order");
  const shown = document.getElementById("shown");
  const rows = [...list.children].map((element, place) => ({
    element, place, text: element.textContent.toLowerCase(), sure: Number(element.dataset.sure),
  }));
  const orders = { drawn: (a, b) => a.place - b.place, sure: (a, b) => a.sure - b.sure || a.place - b.place };
  const more = document.getElementById("more");
  let most = 20;
  const update = () => {
    const wanted = search.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const fitting = rows.filter((row) => wanted.every((part) => row.text.includes(part)));
    for (const row of rows) row.element.hidden = true;
    for (const row of fitting.slice(0, most)) row.element.hidden = false;
    more.hidden = fitting.length <= most;
    more.textContent = `Show all ${fitting.length}`;
    const found = wanted.length ? `, ${fitting.length} found` : "";
    shown.textContent = `${Math.min(fitting.length, most)} of ${rows.length} shown${found}`;
  };
  search.addEventListener("input", update);
  order.addEventListener("change", () => {
    rows.sort(orders[order.value]);
    list.append(...rows.map((row) => row.element));
    update();
  });
  more.addEventListener("click", () => {
    const next = rows.find((row, place) => place >= most && row.element.hidden);
    most = rows.length;
    update();
    if (next) { next.element.tabIndex = -1; next.element.focus(); }
  });
  update();
})();
