"""Formulas as MathML, which browsers draw themselves: no script, no font and no network is needed to read them."""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.writers.html5 import HTML5Translator

logger = getLogger(__name__)


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer ``mathml``."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(_converted(node, as_block=False))
    raise nodes.SkipNode


def _block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(_converted(node, as_block=True))
    raise nodes.SkipNode


def _converted(node: nodes.Element, *, as_block: bool) -> str:
    """MathML of a formula; what cannot be converted is a warning, which ends the build."""
    if r"\operatorname*" in node.astext():  # Docutils takes the star for a letter
        logger.warning("formula %r: write \\operatorname without a star", node.astext(), location=node)
    try:
        return str(tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        logger.warning("formula %r: %s", node.astext(), error, location=node)
        return ""
