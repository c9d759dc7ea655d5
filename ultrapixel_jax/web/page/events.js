// The queue, after every change. A page that nobody sees lets its connection go, unless it waits for a
// picture: browsers keep six to one server, over all their pages.

import { browser } from "./api.js";
import { $, say } from "./dom.js";

export function follow(listener) {
  let source = null;
  let waiting = false;

  function open() {
    if (source) return;
    source = new EventSource(`api/events?browser=${browser}`);
    source.onmessage = (event) => {
      say($("connection"), "");
      const shown = JSON.parse(event.data);
      waiting = shown.jobs.some((job) => job.mine && (job.state === "waiting" || job.state === "drawing"));
      listener(shown);
    };
    source.onerror = () => {
      say($("connection"), "Connection lost. Trying again…");
      if (source.readyState === EventSource.CLOSED) {
        close();
        setTimeout(open, 2000);
      }
    };
  }

  function close() {
    source?.close();
    source = null;
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden && !waiting) close();
    else open();
  });
  addEventListener("pagehide", close);
  addEventListener("pageshow", open);
  open();
}
