// A player that starts stops the others.
document.addEventListener("play", (event) => {
  for (const player of document.querySelectorAll("audio")) if (player !== event.target) player.pause();
}, true);

// What the theme leaves out for keyboards and screen readers.
document.addEventListener("DOMContentLoaded", () => {
  for (const caption of document.querySelectorAll(".caption[role=heading]")) caption.setAttribute("aria-level", "2");
  for (const box of document.querySelectorAll(".highlight pre, .table-wrapper, .text_html:has(.dataframe)"))
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
  for (const part of document.querySelectorAll(".sig dl, .sig dl > dd")) part.setAttribute("role", "none");
  // Figures take the colours of the theme again.
  new MutationObserver(() => dispatchEvent(new Event("theme"))).observe(document.body, { attributeFilter: ["data-theme"] });
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
});
