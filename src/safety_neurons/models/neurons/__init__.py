"""models.neurons"""
