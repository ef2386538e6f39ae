// Connects the players with their sounds. Only one sound plays at a time, and a sound can have several players.
const players = [...document.querySelectorAll(".player")];
const clock = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
document.querySelectorAll("audio").forEach((sound) => {
  const mine = players.filter((player) => player.dataset.sound === sound.id);
  sound.controls = false;
  const show = () => mine.forEach((player) => {
    const [button, slider] = [player.querySelector("button"), player.querySelector("input")];
    const name = player.getAttribute("aria-label");
    button.setAttribute("aria-label", `${sound.paused ? "Play" : "Pause"} ${name}`);
    button.firstElementChild.textContent = sound.paused ? "▶" : "❚❚";
    if (Number.isFinite(sound.duration)) slider.max = sound.duration;
    slider.value = sound.currentTime;
    slider.setAttribute("aria-valuetext", `${sound.currentTime.toFixed(1)} of ${(+slider.max).toFixed(1)} seconds`);
    player.querySelector(".time").textContent = clock(sound.currentTime);
    player.querySelector(".needle").style.left = `${(100 * sound.currentTime) / slider.max}%`;
    player.classList.toggle("playing", !sound.paused);
  });
  const follow = () => { show(); if (!sound.paused) requestAnimationFrame(follow); };
  sound.addEventListener("play", () => {
    document.querySelectorAll("audio").forEach((other) => { if (other !== sound) other.pause(); });
    follow();
  });
  for (const event of ["pause", "ended", "seeked", "loadedmetadata"]) sound.addEventListener(event, show);
  mine.forEach((player) => {
    player.querySelector("button").addEventListener("click", () => { if (sound.paused) sound.play(); else sound.pause(); });
    player.querySelector("input").addEventListener("input", (event) => { sound.currentTime = event.target.value; });
    player.querySelector(".picture").addEventListener("click", (event) => {
      const box = event.currentTarget.getBoundingClientRect();
      sound.currentTime = ((event.clientX - box.left) / box.width) * player.querySelector("input").max;
      sound.play();
    });
  });
  show();
});
