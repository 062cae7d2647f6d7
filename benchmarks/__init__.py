"""Scripts that compare this project with the papers (paper/) and with other software (speed/)."""
