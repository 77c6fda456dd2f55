"use strict";
(() => {  // light or dark: as the system has it, until a person says
  const root = document.documentElement, button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const set = dark => {
    root.classList.toggle("dark", dark); root.classList.toggle("light", !dark);
    button.textContent = dark ? "Light" : "Dark";
  };
  button.addEventListener("click", () => set(!root.classList.contains("dark")));
  system.addEventListener("change", () => set(system.matches));
  set(system.matches);
})();
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows].flatMap(row => [...row.cells]).filter(cell => !("group" in cell.dataset));
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const down = head.getAttribute("aria-sort") !== "descending";
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => { const cell = row.cells[column]; return cell ? cell.dataset.sort ?? cell.textContent : ""; };
      const missing = text => text === "" || text === "nan";
      const compare = (a, b) => {
        const x = Number(key(a)), y = Number(key(b));
        if (missing(key(a)) || missing(key(b))) return missing(key(a)) - missing(key(b));
        if (!isNaN(x) && !isNaN(y)) return down ? y - x : x - y;
        return down ? key(b).localeCompare(key(a)) : key(a).localeCompare(key(b));
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sort(); } });
  });
}
