// Draws the figures whose data are embedded in the page.
for (const held of document.querySelectorAll("script.figure")) {
  const { data, layout } = JSON.parse(held.textContent);
  Plotly.newPlot(held.dataset.into, data, layout, {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  });
}
