// Shows a video from the visitor's disk, and hands the frame that is chosen to the page as a PNG.
const [file, slider] = element.querySelectorAll("input");
const [video, time, button] = ["video", "output", "button"].map((tag) => element.querySelector(tag));
const shown = element.querySelector("div[hidden]");
const complaint = element.querySelector("[role=alert]");
const longest = 2048;

file.addEventListener("change", () => {
  if (video.src) URL.revokeObjectURL(video.src);
  complaint.textContent = "";
  button.disabled = true;
  if (!file.files.length) return;
  video.src = URL.createObjectURL(file.files[0]);
  shown.hidden = false;
});
video.addEventListener("error", () => {
  shown.hidden = true;
  complaint.textContent = "This browser cannot play the video; choose an MP4 or WebM file.";
});
video.addEventListener("loadeddata", () => {
  // Some files do not say how long they are before they were played to their end.
  slider.max = Number.isFinite(video.duration) ? video.duration : 60;
  slider.value = 0;
  button.disabled = false;
});
slider.addEventListener("input", () => {
  video.currentTime = Number(slider.value);
  time.textContent = `${Number(slider.value).toFixed(2)} s`;
});
button.addEventListener("click", () => {
  const scale = Math.min(1, longest / Math.max(video.videoWidth, video.videoHeight));
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(video.videoWidth * scale);
  canvas.height = Math.round(video.videoHeight * scale);
  canvas.getContext("2d").drawImage(video, 0, 0, canvas.width, canvas.height);
  const name = `${file.files[0].name} ${video.currentTime.toFixed(2)} s`;
  trigger("submit", { frame: canvas.toDataURL("image/png"), name });
});
