"use strict";
// What a training writes is put in place as the server made it; when the training's state is another, the page is loaded again.
for (const place of document.querySelectorAll("[data-events]")) {
  const source = new EventSource(place.dataset.events);
  source.addEventListener("progress", (event) => { place.innerHTML = event.data; });
  source.addEventListener("state", () => { source.close(); location.reload(); });
}
