"""The course around the lessons: workspace, progress, hints, checks, release. In a notebook:

from lora_lab import course
course.hint("1.2")       the next of three hints
course.solution("1.2")   how it is solved
course.progress()        the map of the course, with what you have passed
course.doctor()          what works on this machine, and what to do about what does not
"""

# Two submodules share their name with their main function. Importing them here first makes the name the function.
from lora_lab.course.doctor import doctor
from lora_lab.course.hints import hint, solution
from lora_lab.course.progress import progress

__all__ = ["doctor", "hint", "progress", "solution"]
