// What a screen reader would stumble over, as one line each. Run in the page.
() => {
  const problems = [];
  const all = (selector) => [...document.querySelectorAll(selector)];
  const outside = (element) => element.outerHTML.slice(0, 200);
  const nameOf = (element) =>
    (element.getAttribute("aria-label") ?? "").trim() ||
    element.textContent.trim() ||
    [...element.querySelectorAll("img")].map((image) => image.alt).join("");
  for (const field of all("input, textarea, select")) {
    const labels = [...(field.labels ?? [])].filter((label) => label.textContent.trim());
    if (!labels.length && !field.getAttribute("aria-label")) problems.push(`no label: ${outside(field)}`);
  }
  for (const button of all("button, summary, a")) if (!nameOf(button)) problems.push(`no name: ${outside(button)}`);
  for (const image of all("img:not([alt])")) problems.push(`no alt: ${outside(image)}`);
  const ids = all("[id]").map((element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) problems.push(`twice: ${id}`);
  for (const attribute of ["aria-describedby", "aria-labelledby", "for"]) {
    for (const element of all(`[${attribute}]`)) {
      for (const id of element.getAttribute(attribute).split(" ")) {
        if (!document.getElementById(id)) problems.push(`${attribute} names nothing: ${id}`);
      }
    }
  }
  for (const element of all("[tabindex]")) if (element.tabIndex > 0) problems.push(`tabindex: ${outside(element)}`);
  if (all("h1").length !== 1 || !document.querySelector("main")) problems.push("landmarks");
  if (!document.documentElement.lang) problems.push("no language");
  return problems;
}
