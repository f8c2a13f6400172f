// Lets the browser save a file that was just written.
(file) => {
  if (!file) return;
  const link = document.createElement("a");
  link.href = file.url;
  link.download = file.orig_name || file.path.split(/[\\/]/).pop();
  link.click();
}
