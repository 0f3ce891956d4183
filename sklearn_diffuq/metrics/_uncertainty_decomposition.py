"""Decomposition of predictive uncertainty into aleatoric and epistemic parts."""

import numpy as np
from scipy.special import entr, kl_div
from sklearn.utils import Bunch, check_array
from sklearn.utils._param_validation import validate_params

from sklearn_diffuq.metrics._probabilities import check_probabilities


@validate_params({"sampled_probas": ["array-like"]}, prefer_skip_nested_validation=True)
def uncertainty_decomposition(sampled_probas):
    r"""Decompose the entropy of a mean prediction into aleatoric and epistemic parts, in nats.

    With draws :math:`p^1 .. p^K` of the class probabilities of a sample and their mean
    :math:`\bar p`,

    .. math:: \underbrace{H[\bar p]}_{\text{total}} =
        \underbrace{\tfrac1K \textstyle\sum_k H[p^k]}_{\text{aleatoric}} +
        \underbrace{\tfrac1K \textstyle\sum_k \mathrm{KL}(p^k \| \bar p)}_{\text{epistemic}}.

    (eq. 7.1 of the user guide). The epistemic part is the mutual information between label and draw
    (BALD).

    Parameters
    ----------
    sampled_probas : array-like of shape (n_draws, n_samples, n_classes)
        Probabilities, for example from `DiffusionCalibratedClassifier.sample_proba`, an ensemble or
        Monte Carlo dropout.

    Returns
    -------
    Bunch
        `total`, `aleatoric` and `epistemic`, each a non-negative ndarray of shape (n_samples,),
        with total = aleatoric + epistemic exactly.

    Raises
    ------
    ValueError
        If `sampled_probas` has another shape or does not hold probabilities.

    See Also
    --------
    calibration_refinement_decomposition : Decomposition of a loss, which needs labels.

    References
    ----------
    .. [1] Depeweg et al., "Decomposition of Uncertainty in Bayesian Deep Learning for Efficient
       and Risk-sensitive Learning", ICML 2018.

    Examples
    --------
    >>> from sklearn_diffuq.metrics import uncertainty_decomposition
    >>> agree, disagree = [0.5, 0.5], [[1.0, 0.0], [0.0, 1.0]]
    >>> parts = uncertainty_decomposition([[agree, disagree[0]], [agree, disagree[1]]])
    >>> parts.aleatoric.round(3), parts.epistemic.round(3)
    (array([0.693, 0.   ]), array([0.   , 0.693]))
    """
    draws = check_array(sampled_probas, ensure_2d=False, allow_nd=True, input_name="sampled_probas")
    if draws.ndim != 3:
        raise ValueError(
            "sampled_probas must have shape (n_draws, n_samples, n_classes), got"
            f" {draws.shape}. For a single draw pass y_proba[None]."
        )
    draws = check_probabilities(draws.reshape(-1, draws.shape[2])).reshape(draws.shape)
    aleatoric = entr(draws).sum(axis=2).mean(axis=0)
    divergence = kl_div(draws, draws.mean(axis=0)).sum(axis=2).mean(axis=0)
    epistemic = np.maximum(divergence, 0)  # rounding of equal draws has either sign
    return Bunch(total=aleatoric + epistemic, aleatoric=aleatoric, epistemic=epistemic)
