"""Pictures: each figure is a pure function of what others computed (extra `report`); nothing is computed twice."""

from planner.extras import need_report_extra

need_report_extra("planner.figures")
