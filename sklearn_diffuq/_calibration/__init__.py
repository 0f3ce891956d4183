"""From held-out labels to noise and temperature."""
