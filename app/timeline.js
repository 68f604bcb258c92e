// Plays a result of timeline.py, and moves about in it. Adds no text but numbers and what the buttons say of themselves.
(() => {
  const STEPS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200];
  const TICK_PIXELS = 64;
  const MOST_ZOOM = 64;
  const AT_ONCE = 60; // segments of a lane that are in sight at first; narrower ones would be a barcode

  function clock(seconds, digits) {
    const whole = Math.round(seconds * 10 ** digits);
    const minutes = Math.floor(whole / (60 * 10 ** digits));
    const rest = (whole % (60 * 10 ** digits)) / 10 ** digits;
    const small = rest.toFixed(digits).padStart(digits ? 3 + digits : 2, "0");
    return minutes < 60 ? `${minutes}:${small}` : `${Math.floor(minutes / 60)}:${String(minutes % 60).padStart(2, "0")}:${small}`;
  }

  class Result extends HTMLElement {
    connectedCallback() {
      this.seconds = Number(this.dataset.seconds);
      this.zoom = 1;
      this.until = null;
      this.find = (selector) => this.querySelector(selector);
      this.audio = this.find("audio");
      this.segments = [...this.querySelectorAll(".exh-seg")];
      this.addEventListener("click", (event) => this.clicked(event));
      this.addEventListener("keydown", (event) => this.pressed(event));
      for (const name of ["focusin", "pointerover"]) this.addEventListener(name, (event) => this.tell(event.target));
      for (const name of ["play", "pause", "ended"]) this.audio.addEventListener(name, () => this.changed());
      this.audio.addEventListener("timeupdate", () => this.moved());
      this.audio.addEventListener("error", () => this.silent());
      this.sizes = new ResizeObserver(() => this.ticks());
      this.sizes.observe(this.find(".exh-lanes"));
      const most = Math.max(...[...this.querySelectorAll(".exh-band")].map((band) => band.children.length));
      this.scale(most / AT_ONCE);
      this.find(".exh-scroll").scrollLeft = 0;
    }

    disconnectedCallback() {
      this.sizes.disconnect();
      this.audio.pause();
      this.audio.removeAttribute("src");
    }

    clicked(event) {
      const button = event.target.closest("button");
      if (button?.matches(".exh-play")) this.audio.paused ? this.play(this.audio.ended ? 0 : null) : this.audio.pause();
      else if (button?.dataset.zoom) this.scale(this.zoom * Number(button.dataset.zoom));
      else if (button?.matches(".exh-save")) this.save(button);
      else if (button?.dataset.start) this.choose(button);
      else if (event.target.closest(".exh-wave, .exh-axis, .exh-lines")) {
        const box = this.find(".exh-lanes").getBoundingClientRect();
        this.play(((event.clientX - box.left) / box.width) * this.seconds);
      }
    }

    // From a time, or from where it stands; to the end of a segment, or to that of all.
    play(start = null, until = null) {
      if (start !== null) this.audio.currentTime = start;
      this.until = until;
      this.audio.play().catch(() => this.silent());
    }

    choose(button) {
      const again = button.classList.contains("exh-chosen") && !this.audio.paused;
      this.mark(button);
      if (again) this.audio.pause();
      else this.play(Number(button.dataset.start), Number(button.dataset.end));
    }

    mark(button) {
      for (const each of this.querySelectorAll(".exh-chosen")) each.classList.remove("exh-chosen");
      button.classList.add("exh-chosen");
      if (button.matches(".exh-seg")) this.stop_at(button);
    }

    // The segment that the tab key comes to.
    stop_at(button) {
      for (const each of this.segments) each.tabIndex = each === button ? 0 : -1;
    }

    pressed(event) {
      if (event.key === "Escape") this.audio.pause();
      if (!event.target.matches(".exh-seg")) return;
      const bands = [...this.querySelectorAll(".exh-band")];
      const band = event.target.parentElement;
      const nearest = (other) => {
        const away = (each) => Math.abs(each.dataset.start - event.target.dataset.start);
        return [...(other?.children ?? [])].reduce((best, each) => (away(each) < away(best) ? each : best), other?.firstElementChild);
      };
      const next = {
        ArrowRight: () => event.target.nextElementSibling,
        ArrowLeft: () => event.target.previousElementSibling,
        ArrowDown: () => nearest(bands[bands.indexOf(band) + 1]),
        ArrowUp: () => nearest(bands[bands.indexOf(band) - 1]),
        Home: () => band.firstElementChild,
        End: () => band.lastElementChild,
      }[event.key];
      if (!next) return;
      event.preventDefault();
      const target = next();
      if (!target) return;
      this.stop_at(target);
      target.focus();
    }

    tell(target) {
      const segment = target.closest?.(".exh-seg");
      if (segment) this.find(".exh-detail").textContent = segment.getAttribute("aria-label");
    }

    changed() {
      const plays = !this.audio.paused;
      const button = this.find(".exh-play");
      button.textContent = plays ? "❚❚" : "▶";
      button.setAttribute("aria-label", plays ? "Pause" : "Play all");
      this.toggleAttribute("playing", plays);
      const frame = () => {
        this.moved();
        if (!this.audio.paused && this.isConnected) requestAnimationFrame(frame);
      };
      if (plays) requestAnimationFrame(frame);
    }

    moved() {
      let now = this.audio.currentTime;
      if (this.until !== null && now >= this.until) {
        now = this.until;
        this.until = null;
        this.audio.pause();
        this.audio.currentTime = now;
      }
      this.find(".exh-head").style.left = `${(100 * Math.min(now, this.seconds)) / this.seconds}%`;
      this.find(".exh-clock").textContent = clock(now, 1);
      const scroll = this.find(".exh-scroll");
      const place = (now / this.seconds) * scroll.scrollWidth - scroll.scrollLeft;
      if (!this.audio.paused && (place < 0 || place > scroll.clientWidth)) scroll.scrollLeft += place - 0.1 * scroll.clientWidth;
      for (const each of this.segments) {
        each.classList.toggle("exh-now", each.dataset.start <= now && now < each.dataset.end && !this.audio.paused);
      }
    }

    silent() {
      this.find(".exh-play").disabled = true;
      this.find(".exh-detail").textContent = "Your browser cannot play this file; the answers stand.";
    }

    scale(zoom) {
      const scroll = this.find(".exh-scroll");
      const heard = this.audio.currentTime / this.seconds;
      const middle = heard || (scroll.scrollLeft + scroll.clientWidth / 2) / scroll.scrollWidth;
      this.zoom = Math.min(MOST_ZOOM, Math.max(1, zoom));
      this.find(".exh-lanes").style.width = `${100 * this.zoom}%`;
      scroll.scrollLeft = middle * scroll.scrollWidth - scroll.clientWidth / 2;
    }

    ticks() {
      const axis = this.find(".exh-axis");
      const room = this.find(".exh-lanes").clientWidth / TICK_PIXELS;
      const step = STEPS.find((each) => this.seconds / each <= room) ?? STEPS.at(-1);
      const last = this.seconds * (1 - 0.7 / room); // whose text has room
      const marks = [];
      for (let number = 0; number * step <= last; number += 1) {
        const time = number * step;
        const mark = document.createElement("span");
        mark.style.left = `${(100 * time) / this.seconds}%`;
        mark.textContent = clock(time, step < 1 ? 1 : 0);
        marks.push(mark);
      }
      axis.replaceChildren(...marks);
    }

    save(button) {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([button.nextElementSibling.value], { type: button.dataset.type }));
      link.download = button.dataset.file;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    }
  }

  if (!customElements.get("exhubert-result")) customElements.define("exhubert-result", Result);

  document.addEventListener("click", (event) => {
    if (event.target.closest(".exh-theme")) document.body.classList.toggle("dark");
  });

  // Gradio's live recorder fails if it is pressed before its encoder, a worker, is there.
  const ready = (wait) => setTimeout(() => document.getElementById("exh-live")?.removeAttribute("inert"), wait);
  window.Worker = class extends Worker {
    constructor(...given) {
      super(...given);
      ready(500);
    }
  };

  // Gradio draws the page late; what it shows of a run is to be read out.
  const spoken = { "exh-status": "polite", "exh-heard": "off" };
  const watch = new MutationObserver(() => {
    const live = document.getElementById("exh-live");
    if (live && !live.dataset.waited) {
      live.inert = live.dataset.waited = true;
      ready(5000);
    }
    for (const [id, live] of Object.entries(spoken)) {
      const element = document.getElementById(id);
      if (!element || element.hasAttribute("aria-live")) continue;
      element.setAttribute("aria-live", live);
      if (live === "polite") element.setAttribute("role", "status");
    }
  });
  watch.observe(document.documentElement, { childList: true, subtree: true });
})();
