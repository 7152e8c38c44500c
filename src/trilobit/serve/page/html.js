// Preact and htm, bound to each other: components without a build step.
import htm from "./vendor/htm.mjs";
import { h } from "./vendor/preact.mjs";

export { Component, createRef, render } from "./vendor/preact.mjs";
export const html = htm.bind(h);

// Twenty-four units square, strokes only.
const SHAPES = {
  back: "M15 5l-7 7 7 7",
  close: "M6 6l12 12M18 6L6 18",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.500l5 5L19.5 7",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20l1-4.500L16.5 4l3.5 3.500L8.5 19 4 20zM14 6.500l3.5 3.5",
  export: "M12 15V4M8 8l4-4 4 4M5 14v6h14v-6",
  forth: "M9 5l7 7-7 7",
  menu: "M4 7h16M4 12h16M4 17h10",
  moon: "M20 14.500A8.5 8.5 0 0 1 9.5 4 8.5 8.5 0 1 0 20 14.500z",
  plus: "M12 5v14M5 12h14",
  remove: "M5 7h14M10 7V4.500h4V7M7 7l1 13h8l1-13M10.5 11v5.500M13.5 11v5.5",
  again: "M19.5 12a7.5 7.5 0 1 1-2.3-5.400L20 9.200M20 4v5.200h-5.2",
  search: "M10.5 17a6.5 6.5 0 1 1 0-13 6.5 6.5 0 0 1 0 13zM15.5 15.500L20 20",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.500v5M8 13.500v5",
  stop: "M7.5 7.500h9v9h-9z",
  sun: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 2.500v2M12 19.500v2M2.5 12h2M19.5 12h2M5.3 5.300l1.4 1.400M17.3 17.300l1.4 1.400M5.3 18.700l1.4-1.400M17.3 6.700l1.4-1.4",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
};

const icon = (name) => html`<svg class="icon icon-${name}" viewBox="0 0 24 24" aria-hidden="true"><path d=${SHAPES[name]} /></svg>`;

export const Mark = () => html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
  <path d="M16 3c6 0 10 5.5 10 13s-4 13-10 13S6 23.5 6 16 10 3 16 3zM6.2 14c2-1.8 4-2.3 6.3-2.3.3-2.6 1.5-4.2 3.5-4.2s3.2 1.6 3.5 4.2c2.3 0 4.3.5 6.3 2.3M12.5 11.7c-.3 6 .8 12.5 3.5 17.3 2.7-4.8 3.8-11.3 3.5-17.3M6.5 18.5l6.2-1.5h6.6l6.2 1.5M8 23.3l5.7-1.6h4.6l5.7 1.6" />
</svg>`;

/** A button that is only a picture, with its name for whoever does not see it. */
export function IconButton({ name, label, ...rest }) {
  return html`<button type="button" class="icon-button" aria-label=${label} title=${label} ...${rest}>${icon(name)}</button>`;
}

export { icon };
