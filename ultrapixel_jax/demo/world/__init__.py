"""The drawn world: scenes, their captions, drawing and building data."""
