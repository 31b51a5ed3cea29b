"""The drawn world: rooms with people in them, what can be said and asked about them, and what is planted in that.

scene.py has the values, drawing.py the pictures, law.py the planted stereotype, language.py the words. No model and no
torch: recipes/roomworld.py trains a model on this world, tasks/rooms.py asks it.
"""

from trimtab.roomworld.drawing import draw
from trimtab.roomworld.scene import Person, Scene, any_scene

__all__ = ["Person", "Scene", "any_scene", "draw"]
