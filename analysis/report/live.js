// Unpacks the plotting library, and draws the figures whose data are embedded in the page, in the page's colours.
(async () => {
  // The documentation has the library in a file of its own.
  if (!("Plotly" in window)) {
    const library = document.getElementById("library");
    if (!library || !("DecompressionStream" in window)) return;
    const bytes = Uint8Array.from(atob(library.textContent), (letter) => letter.charCodeAt(0));
    const script = document.createElement("script");
    script.textContent = await new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
    document.head.append(script);
  }

  const set = (object, path, value) => {
    const names = path.split(".");
    const last = names.pop();
    names.reduce((inner, name) => (inner[name] ??= {}), object)[last] = value;
  };
  const rgb = (colour) => "#" + colour.match(/\d+/g).slice(0, 3).map((n) => (+n).toString(16).padStart(2, "0")).join("");

  const draw = (held) => {
    const place = document.getElementById(held.dataset.into);
    const look = getComputedStyle(document.body);
    const ink = rgb(look.color);
    const { figure, slider } = JSON.parse(held.textContent.replaceAll('"#000000"', `"${ink}"`).replaceAll('"#333333"', `"${ink}"`));
    const { data, layout } = figure;
    if (slider) {
      const step = slider.steps[document.querySelector(`input[data-into="${held.dataset.into}"]`).value];
      step.data.visible.forEach((visible, trace) => { data[trace].visible = visible; });
      for (const [path, value] of Object.entries(step.layout)) set(layout, path, value);
    }
    layout.font = { ...layout.font, color: ink, family: look.fontFamily };
    layout.paper_bgcolor = layout.plot_bgcolor = "rgba(0,0,0,0)";
    const axes = layout.template?.layout ?? {};
    for (const axis of [axes.xaxis, axes.yaxis]) if (axis) axis.linecolor = axis.tickcolor = ink;
    if (!place.classList.contains("js-plotly-plot")) place.textContent = "";
    Plotly.react(place, data, layout, {
      displaylogo: false,
      // A button of plotly 4 that would upload the figure. The page's policy forbids it, and nobody should be asked.
      showSendToCloud: false,
      plotlyServerURL: "",
      responsive: true,
      modeBarButtonsToRemove: ["select2d", "lasso2d"],
    });
  };
  const all = () => document.querySelectorAll("script.figure").forEach(draw);
  all();
  addEventListener("theme", all);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
  document.querySelectorAll("input[data-into]").forEach((input) => {
    const held = document.querySelector(`script.figure[data-into="${input.dataset.into}"]`);
    const { slider } = JSON.parse(held.textContent);
    input.addEventListener("input", () => {
      const { label } = slider.steps[input.value];
      input.parentElement.querySelector("output").textContent = label;
      input.setAttribute("aria-valuetext", slider.prefix + label);
      draw(held);
    });
  });
})();
