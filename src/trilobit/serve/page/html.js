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
  check: "M5 12.500l5 5L19.500 7",
  down: "M12 5v14M6 13l6 6 6-6",
  edit: "M4 20l1-4.500L16.500 4l3.500 3.500L8.500 19 4 20zM14 6.500l3.500 3.500",
  export: "M12 15V4M8 8l4-4 4 4M5 14v6h14v-6",
  forth: "M9 5l7 7-7 7",
  menu: "M4 7h16M4 12h16M4 17h10",
  moon: "M20 14.500A8.500 8.500 0 0 1 9.500 4 8.500 8.500 0 1 0 20 14.500z",
  plus: "M12 5v14M5 12h14",
  remove: "M5 7h14M10 7V4.500h4V7M7 7l1 13h8l1-13M10.500 11v5.500M13.500 11v5.500",
  again: "M19.500 12a7.500 7.500 0 1 1-2.300-5.400L20 9.200M20 4v5.200h-5.200",
  search: "M10.500 17a6.500 6.500 0 1 1 0-13 6.500 6.500 0 0 1 0 13zM15.500 15.500L20 20",
  send: "M12 19V5M6 11l6-6 6 6",
  settings: "M4 8h9M19 8h1M4 16h1M11 16h9M16 5.500v5M8 13.500v5",
  stop: "M7.500 7.500h9v9h-9z",
  sun: "M12 8a4 4 0 1 1 0 8 4 4 0 0 1 0-8zM12 2.500v2M12 19.500v2M2.500 12h2M19.500 12h2M5.300 5.300l1.400 1.400M17.300 17.300l1.400 1.400M5.300 18.700l1.400-1.400M17.300 6.700l1.400-1.400",
  system: "M4 5h16v11H4zM9 20h6M12 16v4",
};

const icon = (name) => html`<svg class="icon ${name}" viewBox="0 0 24 24" aria-hidden="true"><path d=${SHAPES[name]} /></svg>`;

export const Mark = () => html`<svg class="mark" viewBox="0 0 32 32" aria-hidden="true">
  <path d="M4 14.500C4 7 9.500 3 16 3s12 4 12 11.500c-4-1.500-20-1.500-24 0zM6.500 14c.3 8.500 4.500 15 9.500 15s9.200-6.500 9.500-15M12.500 13.300c0 6.500 1 11.700 3.500 15.700M19.500 13.300c0 6.500-1 11.700-3.500 15.700M7.300 19.500h17.400M9.500 24.500h13" />
</svg>`;

/** A button that is only a picture, with its name for whoever does not see it. */
export function IconButton({ name, label, ...rest }) {
  return html`<button type="button" class="icon-button" aria-label=${label} title=${label} ...${rest}>${icon(name)}</button>`;
}

export { icon };
