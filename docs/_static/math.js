// The equations of a page: Sphinx leaves TeX in <span class="math"> and <div class="math">, KaTeX draws it.
const draw = () => {
  for (const place of document.querySelectorAll('.math')) {
    const display = place.tagName === 'DIV';
    katex.render(place.textContent, place, {displayMode: display, throwOnError: false, strict: false});
  }
};
// Where an equation leaves no room for its number at the margin, the number goes behind it, and the two scroll together.
const number = () => {
  for (const tag of document.querySelectorAll('.math .katex-tag')) {
    const place = tag.closest('.math');
    place.classList.remove('tight');
    const bases = [...place.querySelectorAll('.katex-html > .katex-base')];
    const end = Math.max(...bases.map((base) => base.getBoundingClientRect().right));
    place.classList.toggle('tight', end + 8 > tag.getBoundingClientRect().left);
  }
};
document.addEventListener('DOMContentLoaded', draw);
window.addEventListener('load', number);
window.addEventListener('resize', number);
