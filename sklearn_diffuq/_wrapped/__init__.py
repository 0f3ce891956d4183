"""The wrapped model as a scikit-learn classifier."""
