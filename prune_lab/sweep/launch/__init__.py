"""What launchers of sweeps need beyond the engines they use."""
