"""Models as scikit-learn classifiers, which the package's estimators wrap."""
