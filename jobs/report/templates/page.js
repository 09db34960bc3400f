"use strict";
(() => {
  const RENEW = 8, RENEW_SELDOM = 60, SILENCE = 600; // seconds
  const find = (selector) => document.querySelector(selector);
  const all = (selector) => [...document.querySelectorAll(selector)];
  const kept = history.state || {}; // survives a reload, from files too

  for (const time of all("time")) {
    const date = new Date(time.dateTime);
    time.title = time.textContent;
    time.textContent = date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
  }

  for (const button of all("button.copy")) {
    const path = button.previousElementSibling;
    button.hidden = false;
    button.addEventListener("click", async () => {
      getSelection().selectAllChildren(path); // what is left to do by hand where pages may not use the clipboard
      try {
        await navigator.clipboard.writeText(path.textContent);
        getSelection().removeAllRanges();
        find("#said").textContent = "Path copied";
        button.textContent = "Copied";
        setTimeout(() => { button.textContent = "Copy path"; find("#said").textContent = ""; }, 2000);
      } catch {
        find("#said").textContent = "Path selected";
      }
    });
  }

  const takes = all("article.take").map((element) => ({
    element,
    text: [".name", ".prompts"].map((part) => element.querySelector(part)?.textContent ?? "").join(" ").toLowerCase(),
  }));
  const filter = find("#filter");
  const chosen = () => ({ state: find("#filter input:checked")?.value ?? "", words: find("#find")?.value ?? "" });
  const sift = () => {
    const { state, words } = chosen();
    const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const { element, text } of takes) {
      element.hidden = Boolean(state && element.dataset.state !== state) || !wanted.every((word) => text.includes(word));
      count += !element.hidden;
    }
    find("#found").textContent = state || words ? `${count} of ${takes.length} shown` : "";
  };
  if (filter) {
    filter.hidden = false;
    filter.addEventListener("input", sift);
    filter.addEventListener("submit", (event) => event.preventDefault());
    const radio = kept.state && find(`#show-${kept.state}`);
    if (radio) radio.checked = true;
    if (kept.words) find("#find").value = kept.words;
    if (kept.state || kept.words) sift();
  }
  addEventListener("hashchange", () => { // a link to a take that the filter hides
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    if (target?.hidden) {
      filter.reset();
      sift();
      target.scrollIntoView();
    }
  });

  if (document.body.dataset.live !== "yes") return;

  // While a job runs the page loads itself again, but never under the hands of whoever uses it; it comes back to where it was.
  const pause = find("#pause");
  pause.hidden = false;
  history.scrollRestoration = "manual";
  if (kept.take) {
    const take = document.getElementById(kept.take);
    take?.scrollIntoView();
    if (take) scrollBy(0, Math.round(take.getBoundingClientRect().top - kept.top));
  } else if (kept.top) {
    scrollTo(0, kept.top);
  }
  if (kept.focus) document.getElementById(kept.focus)?.focus({ preventScroll: true });

  const press = (on) => { pause.setAttribute("aria-pressed", on); };
  const place = () => {
    const first = scrollY > 200 && all("article.take:not([hidden])").find((take) => take.getBoundingClientRect().bottom > 0);
    if (!first) return { top: scrollY };
    const top = first.getBoundingClientRect().top;
    return { take: first.id, top: first.id === kept.take && Math.abs(top - kept.top) < 2 ? kept.top : top }; // or else rounding would add up
  };
  const remember = () => history.replaceState({ ...chosen(), ...place(), paused: pause.getAttribute("aria-pressed") === "true", focus: document.activeElement.id }, "");
  const inUse = () => {
    if (pause.getAttribute("aria-pressed") === "true") return "Updates are paused.";
    if (all("video").some((film) => !film.paused || film.currentTime > 0 && !film.ended)) return "Updates wait while a film is open.";
    if (find("details[open]")) return "Updates wait while settings or other details are open.";
    if (!getSelection().isCollapsed) return "Updates wait while text is selected.";
    if (document.activeElement.closest("article, #find, summary")) return "Updates wait while you are at a take or in the search.";
    return "";
  };
  press(Boolean(kept.paused));
  pause.addEventListener("click", () => { press(pause.getAttribute("aria-pressed") !== "true"); tell(); });

  const silence = (Date.now() - new Date(document.body.dataset.heard)) / 1000;
  const period = silence > SILENCE ? RENEW_SELDOM : RENEW;
  let left = period;
  const tell = () => { find("#renewing").textContent = inUse() || `Updates itself every ${period} s.`; };
  tell();
  setInterval(() => {
    tell();
    left = inUse() ? Math.max(left, 2) : left - 1;
    if (left <= 0) {
      remember();
      location.reload();
    }
  }, 1000);
})();
