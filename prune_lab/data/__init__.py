"""Text and tokens to calibrate on and to evaluate on; each file of `conf/data` names one class of this package."""
