import subprocess
import sys


def test_metrics_work_and_displays_explain_themselves_without_matplotlib():
    code = """
import sys
sys.modules["matplotlib"] = sys.modules["matplotlib.pyplot"] = None
from sklearn_diffuq.metrics import ReliabilityDisplay, expected_calibration_error
assert expected_calibration_error([0, 1], [0.0, 1.0]) == 0
try:
    ReliabilityDisplay.from_predictions([0, 1], [0.0, 1.0])
except ImportError as error:
    assert "pip install matplotlib" in str(error), error
else:
    raise SystemExit("drew without matplotlib")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
