
// The report has these functions in one script with its own; this page has them as a module.
export { announce, bar, byId, colours, copy, cssColour, dark, drawUpwards, image, make, ramp, shell, show, sized };
