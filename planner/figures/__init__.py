"""Pictures: each figure is a pure function of what others computed (extra `report`); nothing is computed twice."""
