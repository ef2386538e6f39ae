// Decompresses and saves the embedded tables; links elsewhere on the page trigger the link in the list of tables.
addEventListener("click", async (event) => {
  const link = event.target instanceof Element && event.target.closest("a.csv");
  if (!link) return;
  const address = link.getAttribute("href");
  if (address.startsWith("#")) {
    event.preventDefault();
    document.getElementById(address.slice(1)).click();
  } else if (link.dataset.csv) {
    event.preventDefault();
    const bytes = Uint8Array.from(atob(address.split(",")[1]), (letter) => letter.charCodeAt(0));
    const packed = new Blob([bytes], { type: "application/gzip" });
    const able = "DecompressionStream" in window;
    const table = able ? await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).blob() : packed;
    const saving = document.createElement("a");
    saving.href = URL.createObjectURL(table);
    saving.download = able ? link.dataset.csv : link.download;
    saving.click();
    setTimeout(() => URL.revokeObjectURL(saving.href), 60000);
  }
});
