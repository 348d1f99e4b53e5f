// Everything can be read without this: it turns the native tooltips into quicker ones that also work by touch,
// and unfolds the details when the page is printed.
(function () {
  "use strict";
  var tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.appendChild(tip);

  // Browsers would show their own tooltip too, so the text moves to a data attribute.
  document.querySelectorAll(".hit").forEach(function (element) {
    var title = element.querySelector("title");
    if (title) {
      element.dataset.tip = title.textContent;
      title.remove();
    }
  });
  document.querySelectorAll(".sample span[title]").forEach(function (element) {
    element.dataset.tip = element.title;
    element.removeAttribute("title");
  });

  function show(event) {
    var target = event.target.closest ? event.target.closest("[data-tip]") : null;
    if (!target) {
      tip.hidden = true;
      return;
    }
    tip.textContent = target.dataset.tip;
    tip.hidden = false;
    var x = Math.min(event.clientX + 14, window.innerWidth - tip.offsetWidth - 8);
    var y = event.clientY + 18;
    if (y + tip.offsetHeight > window.innerHeight - 8) y = event.clientY - tip.offsetHeight - 12;
    tip.style.left = Math.max(8, x) + "px";
    tip.style.top = y + "px";
  }
  document.addEventListener("pointermove", show);
  document.addEventListener("pointerdown", show);
  document.addEventListener("scroll", function () { tip.hidden = true; }, true);
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (details) { details.open = true; });
  });
})();
