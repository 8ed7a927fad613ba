"""What quantizing a face classifier does to its fairness, measured on people one can render."""
