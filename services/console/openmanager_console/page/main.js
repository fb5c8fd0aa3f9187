const source = new EventSource("/api/events");
source.addEventListener("status", (event) => {
  document.getElementById("overall").textContent = JSON.parse(event.data).board.overall_state;
});
