"""What goes in: labelled images (`images`) and cached latents (`latents`)."""
