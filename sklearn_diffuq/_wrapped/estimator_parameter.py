"""What the estimators with a parameter `estimator` share: its parameters, and its inputs."""

from sklearn.utils import InputTags, get_tags

from sklearn_diffuq._wrapped.ft_transformer_classifier import FTTransformerClassifier
from sklearn_diffuq._wrapped.module_parameters import ModuleParameters

_NESTED = "estimator__"


class EstimatorParameter(ModuleParameters):
    """Mixin of estimators that wrap `estimator`; None is a `FTTransformerClassifier`."""

    def set_params(self, **params):
        """Set parameters, also those of the wrapped estimator.

        Parameters
        ----------
        **params : dict
            Parameters by name. ``estimator__<name>`` is one of the wrapped estimator; where
            `estimator` is None, it becomes a :class:`~sklearn_diffuq.FTTransformerClassifier`.

        Returns
        -------
        self : object
            The estimator itself.
        """
        nested = [name for name in params if name.startswith(_NESTED)]
        given = params.get("estimator", self.estimator)
        if nested and given is None:
            device = params.get("device", self.device)
            params["estimator"] = FTTransformerClassifier(device=device)
        elif nested and not hasattr(given, "set_params"):
            raise ValueError(
                f"{nested[0]} cannot be set: estimator is a {type(given).__name__}, which has no "
                "parameters. Give an estimator that has them, for example "
                f"TransformerClassifier(model, {nested[0].removeprefix(_NESTED)}=...)."
            )
        return super().set_params(**params)

    def __sklearn_tags__(self):
        """Accept the inputs that the wrapped model accepts."""
        tags, wrapped = super().__sklearn_tags__(), self.estimator
        wrapped = FTTransformerClassifier() if wrapped is None else wrapped
        known = hasattr(wrapped, "__sklearn_tags__")
        tags.input_tags = get_tags(wrapped).input_tags if known else InputTags()
        return tags
